//! The image registry from the outside.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use wrenn_base::{Bytes, ImageName};
use wrenn_storage::{Collision, Image, ImageDetails, ImageError, ImageRegistry, StagedImage};

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// What passes for a file system: the superblock's magic number, and `content` somewhere.
fn fill(staged: &StagedImage, content: &[u8]) {
    let file = fs::File::create(staged.rootfs()).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&[0x53, 0xef], 1024 + 0x38).unwrap();
    file.write_all_at(content, 8192).unwrap();
}

fn register(
    registry: &ImageRegistry,
    text: &str,
    content: &[u8],
    collision: Collision,
) -> Result<Image, ImageError> {
    let staged = registry.stage(&name(text)).unwrap();
    fill(&staged, content);
    let details = ImageDetails {
        source: "a test".into(),
        env: [("LANG".to_owned(), "C.UTF-8".to_owned())].into(),
        workdir: Some("/home/user".into()),
        user: Some("user".into()),
        entrypoint: vec!["/bin/tool".into(), "--quiet".into()],
        cmd: vec!["run".into()],
        exposed_ports: vec!["8080/tcp".into()],
    };
    registry.register(staged, details, collision, &mut |_| ())
}

fn entries(data: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(data.join("images"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_image_is_registered_read_back_and_listed() {
    let data = tempfile::tempdir().unwrap();
    let registry = ImageRegistry::open(data.path()).unwrap();
    assert!(registry.list().unwrap().is_empty());
    let made = register(&registry, "debian", b"content", Collision::Refuse).unwrap();
    let read = ImageRegistry::open(data.path()).unwrap().get(&name("debian")).unwrap();
    assert_eq!(read.size, Bytes(1 << 20));
    assert_eq!(read.digest, made.digest);
    assert_eq!(read.details, made.details);
    assert_eq!(read.details.env["LANG"], "C.UTF-8");
    assert_eq!(fs::metadata(&read.rootfs).unwrap().permissions().mode() & 0o777, 0o444);
    let mut seen = 0;
    read.verify(&mut |len| seen += len).unwrap();
    assert_eq!(seen, 1 << 20);
    register(&registry, "alpine", b"", Collision::Refuse).unwrap();
    let listed: Vec<_> = registry.list().unwrap().into_iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(listed, ["alpine", "debian"]);
}

#[test]
fn an_image_of_the_first_format_is_read() {
    let data = tempfile::tempdir().unwrap();
    let registry = ImageRegistry::open(data.path()).unwrap();
    let details = ImageDetails { source: "a test".into(), user: Some("user".into()), ..Default::default() };
    let staged = registry.stage(&name("old")).unwrap();
    fill(&staged, b"content");
    registry.register(staged, details.clone(), Collision::Refuse, &mut |_| ()).unwrap();
    let path = data.path().join("images/old/image.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        !text.contains("entrypoint") && !text.contains("cmd") && !text.contains("exposed_ports"),
        "{text}"
    );
    fs::remove_file(&path).unwrap();
    fs::write(&path, text.replace("\"format\": 2", "\"format\": 1")).unwrap();
    assert!(fs::read_to_string(&path).unwrap().contains("\"format\": 1"));
    assert_eq!(registry.get(&name("old")).unwrap().details, details);
}

#[test]
fn a_missing_image_says_how_to_get_it() {
    let data = tempfile::tempdir().unwrap();
    let registry = ImageRegistry::open(data.path()).unwrap();
    let error = registry.get(&name("debian")).unwrap_err();
    assert!(matches!(&error, ImageError::NotFound { name, .. } if name.as_str() == "debian"));
    assert!(error.to_string().contains("wrenn image build debian"), "{error}");
}

#[test]
fn a_registered_image_is_replaced_only_on_demand_and_in_one_step() {
    let data = tempfile::tempdir().unwrap();
    let registry = ImageRegistry::open(data.path()).unwrap();
    let first = register(&registry, "debian", b"first", Collision::Refuse).unwrap();
    let refused = register(&registry, "debian", b"second", Collision::Refuse).unwrap_err();
    assert!(matches!(refused, ImageError::AlreadyRegistered { .. }), "{refused}");
    assert_eq!(registry.get(&name("debian")).unwrap().digest, first.digest);

    let running = fs::File::open(&first.rootfs).unwrap();
    let second = register(&registry, "debian", b"second", Collision::Replace).unwrap();
    assert_ne!(second.digest, first.digest);
    let mut content = [0; 5];
    running.read_exact_at(&mut content, 8192).unwrap();
    assert_eq!(&content, b"first", "who has it open keeps it");
    assert_eq!(entries(data.path()), ["debian"], "the old one is gone");
}

#[test]
fn a_damaged_image_is_named_and_the_others_still_work() {
    let data = tempfile::tempdir().unwrap();
    let registry = ImageRegistry::open(data.path()).unwrap();
    for text in ["altered", "foreign", "future", "good", "manifest", "truncated"] {
        register(&registry, text, text.as_bytes(), Collision::Refuse).unwrap();
    }
    let dir = data.path().join("images");
    let replace = |file: &Path, content: &[u8]| {
        fs::remove_file(file).unwrap();
        fs::write(file, content).unwrap();
    };
    replace(&dir.join("truncated/rootfs.ext4"), &[0; 4096]);
    replace(&dir.join("manifest/image.json"), b"{\"format\":1");
    replace(&dir.join("future/image.json"), b"{\"format\":7}");
    let good = fs::read(dir.join("good/image.json")).unwrap();
    replace(&dir.join("foreign/image.json"), &good);
    let mut rootfs = fs::read(dir.join("altered/rootfs.ext4")).unwrap();
    rootfs[500_000] ^= 1;
    replace(&dir.join("altered/rootfs.ext4"), &rootfs);

    for (image, result) in registry.list().unwrap() {
        let error = match (image.as_str(), result) {
            ("good", Ok(image)) => {
                image.verify(&mut |_| ()).unwrap();
                continue;
            }
            ("altered", Ok(image)) => image.verify(&mut |_| ()).unwrap_err(),
            (_, result) => result.unwrap_err(),
        };
        let expected = match image.as_str() {
            "altered" => matches!(error, ImageError::DigestMismatch { .. }),
            "truncated" => matches!(error, ImageError::SizeMismatch { found: 4096, expected: 1_048_576, .. }),
            "manifest" => matches!(error, ImageError::Manifest { .. }),
            "future" => matches!(error, ImageError::NewerFormat { found: 7, .. }),
            "foreign" => matches!(error, ImageError::Implausible { .. }),
            other => panic!("{other}"),
        };
        assert!(expected, "{image}: {error:?}");
        assert!(error.to_string().contains(image.as_str()), "{error}");
    }
}

#[test]
fn what_is_no_root_disk_is_refused_and_nothing_is_left() {
    let data = tempfile::tempdir().unwrap();
    let registry = ImageRegistry::open(data.path()).unwrap();
    let try_register = |details: ImageDetails, shape: &dyn Fn(&StagedImage)| {
        let staged = registry.stage(&name("bad")).unwrap();
        shape(&staged);
        registry.register(staged, details, Collision::Refuse, &mut |_| ()).unwrap_err()
    };
    let error =
        try_register(ImageDetails::default(), &|staged| fs::write(staged.rootfs(), "no disk").unwrap());
    assert!(matches!(error, ImageError::NotAFileSystem { .. }), "{error}");
    let error = try_register(ImageDetails::default(), &|staged| {
        fill(staged, b"");
        fs::OpenOptions::new().write(true).open(staged.rootfs()).unwrap().set_len(9999).unwrap();
    });
    assert!(matches!(error, ImageError::NotWholeBlocks { .. }), "{error}");
    let error = try_register(ImageDetails::default(), &|_| ());
    assert!(matches!(error, ImageError::Io { .. }), "{error}");
    let relative = ImageDetails { workdir: Some("home".into()), ..ImageDetails::default() };
    let error = try_register(relative, &|staged| fill(staged, b""));
    assert!(matches!(error, ImageError::Implausible { .. }), "{error}");
    for details in [
        ImageDetails { cmd: vec!["a\0b".into()], ..ImageDetails::default() },
        ImageDetails { exposed_ports: vec![String::new()], ..ImageDetails::default() },
        // It could not be read back.
        ImageDetails { entrypoint: vec!["x".repeat(300 << 10)], ..ImageDetails::default() },
    ] {
        let error = try_register(details, &|staged| fill(staged, b""));
        assert!(matches!(error, ImageError::Implausible { .. }), "{error}");
    }
    assert!(entries(data.path()).is_empty());
}

#[test]
fn opening_sweeps_what_a_dead_builder_left_and_spares_a_living_one() {
    let data = tempfile::tempdir().unwrap();
    let registry = ImageRegistry::open(data.path()).unwrap();
    let living = registry.stage(&name("living")).unwrap();
    fill(&living, b"alive");
    // A builder that was killed leaves its directory, and the kernel drops its lock.
    let dead = data.path().join("images/.staged-0123456789abcdef-dead");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("rootfs.ext4"), "half").unwrap();

    let again = ImageRegistry::open(data.path()).unwrap();
    assert!(!dead.exists());
    assert!(again.list().unwrap().is_empty(), "what is staged is not listed");
    let image = again.register(living, ImageDetails::default(), Collision::Refuse, &mut |_| ()).unwrap();
    let allocated = image.allocated().unwrap();
    assert_eq!(allocated, Bytes(fs::metadata(&image.rootfs).unwrap().blocks() * 512));
    assert!(allocated > Bytes(0) && allocated < Bytes(1 << 20), "sparse it was and stays: {allocated}");
    assert_eq!(entries(data.path()), ["living"]);
}
