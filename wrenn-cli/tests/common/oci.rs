//! Container images, made by hand.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub(crate) fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An archive of files; names go in as they are.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(content).unwrap();
    gzip.finish().unwrap()
}

pub(crate) fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

/// A configuration for layers with these plain contents.
pub(crate) fn config(architecture: &str, layers: &[&[u8]]) -> Vec<u8> {
    let ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/bin:/bin", "EMPTY=", "no-variable"],
            "Entrypoint": ["/bin/tool", "--quiet"],
            "Cmd": ["run"],
            "WorkingDir": "/srv",
            "User": "1000:1000",
            "ExposedPorts": {"8080/tcp": {}, "53/udp": {}},
            "Labels": null,
        },
        "rootfs": {"type": "layers", "diff_ids": ids},
        "history": [],
    });
    serde_json::to_vec(&config).unwrap()
}

/// Blobs by their digests.
#[derive(Clone, Default)]
pub(crate) struct Blobs(pub(crate) BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds a blob and returns its descriptor.
    pub(crate) fn add(&mut self, kind: &str, content: &[u8]) -> Value {
        self.0.insert(digest(content), content.to_vec());
        json!({"mediaType": kind, "digest": digest(content), "size": content.len()})
    }

    pub(crate) fn add_json(&mut self, kind: &str, content: &Value) -> Value {
        self.add(kind, &serde_json::to_vec(content).unwrap())
    }

    /// Adds an image with layers that are given plain and packed, and returns its manifest's descriptor.
    pub(crate) fn add_image(&mut self, architecture: &str, layers: &[(&[u8], &[u8])]) -> Value {
        let plain: Vec<_> = layers.iter().map(|(plain, _)| *plain).collect();
        let config = self.add(CONFIG, &config(architecture, &plain));
        let layers: Vec<_> = layers.iter().map(|(_, packed)| self.add(LAYER, packed)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut descriptor = self.add_json(MANIFEST, &manifest);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    }

    /// The files of a layout with these images.
    pub(crate) fn layout(&self, manifests: &[Value]) -> Vec<(String, Vec<u8>)> {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), serde_json::to_vec(&index).unwrap()),
        ];
        let blobs = self.0.iter();
        files.extend(blobs.map(|(name, blob)| (format!("blobs/{}", name.replace(':', "/")), blob.clone())));
        files
    }
}

/// Writes files to a directory.
pub(crate) fn write_dir(dir: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// An archive of files.
pub(crate) fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), &content[..])).collect();
    tar(&files)
}

/// What `docker save` writes of an image with these layers.
pub(crate) fn saved(tag: &str, config: &[u8], layers: &[&[u8]]) -> Vec<(String, Vec<u8>)> {
    let config_name = format!("{}.json", digest(config).trim_start_matches("sha256:"));
    let names: Vec<_> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let manifest = json!([{"Config": config_name, "RepoTags": [tag], "Layers": names}]);
    let mut files = vec![
        (config_name, config.to_vec()),
        ("manifest.json".to_owned(), serde_json::to_vec(&manifest).unwrap()),
    ];
    files.extend(names.into_iter().zip(layers).map(|(name, layer)| (name, layer.to_vec())));
    files
}
