//! Every request that the driver makes, recorded on a real socket and held against the description.

use std::collections::BTreeSet;

use wrenn_vmm::api::*;
use wrenn_vmm::{Client, Timeouts};

use crate::common::block_on;
use crate::common::peer::{Peer, Recorded};
use crate::spec::Spec;

/// Answers as a monitor would that agrees to everything.
fn agree(request: &Recorded) -> (u16, String) {
    let info = r#"{"app_name":"peer","id":"0123456789abcdef","state":"Running","vmm_version":"1.17.0"}"#;
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/") => (200, info.into()),
        ("GET", "/version") => (200, r#"{"firecracker_version":"1.17.0"}"#.into()),
        _ => (204, String::new()),
    }
}

/// Every option set, so that every field is sent.
fn full_load() -> SnapshotLoad {
    SnapshotLoad {
        snapshot_path: "/s/state".into(),
        mem_backend: Some(MemBackend {
            backend_type: MemBackendType::Uffd,
            backend_path: "/s/uffd.sock".into(),
        }),
        mem_file_path: None,
        track_dirty_pages: true,
        enable_diff_snapshots: false,
        resume_vm: true,
        network_overrides: vec![NetworkOverride { iface_id: "eth0".into(), host_dev_name: "tap0".into() }],
        vsock_override: Some(VsockOverride { uds_path: "/v.sock".into() }),
        clock_realtime: true,
        huge_pages: Some(RestoredHugePages::Hugetlbfs2M),
    }
}

fn full_limiter() -> Option<RateLimiter> {
    let bucket = Some(TokenBucket { size: 1 << 20, one_time_burst: Some(1), refill_time: 100 });
    Some(RateLimiter { bandwidth: bucket, ops: bucket })
}

async fn configure(client: &Client) {
    client.put_machine_config(&MachineConfig::default()).await.unwrap();
    let machine = MachineConfig {
        vcpu_count: 32,
        mem_size_mib: 4096,
        smt: true,
        track_dirty_pages: true,
        cpu_template: Some(CpuTemplate::T2),
        huge_pages: Some(HugePages::Transparent),
    };
    client.put_machine_config(&machine).await.unwrap();
    let boot = BootSource {
        kernel_image_path: "/k".into(),
        initrd_path: Some("/i".into()),
        boot_args: Some("quiet".into()),
    };
    client.put_boot_source(&boot).await.unwrap();
    let drive = Drive {
        drive_id: "root".into(),
        is_root_device: true,
        partuuid: Some("0eaa91a0-01".into()),
        path_on_host: Some("/d".into()),
        is_read_only: Some(false),
        cache_type: Some(CacheType::Writeback),
        io_engine: Some(IoEngine::Sync),
        rate_limiter: full_limiter(),
        socket: None,
    };
    client.put_drive(&drive).await.unwrap();
    let interface = NetworkInterface {
        iface_id: "eth0".into(),
        host_dev_name: "tap0".into(),
        guest_mac: Some("06:00:a9:fe:00:15".into()),
        mtu: Some(1500),
        rx_rate_limiter: full_limiter(),
        tx_rate_limiter: full_limiter(),
    };
    client.put_network_interface(&interface).await.unwrap();
    client.put_entropy(&EntropyDevice { rate_limiter: full_limiter() }).await.unwrap();
    client.put_entropy(&EntropyDevice::default()).await.unwrap();
    let logger = Logger {
        log_path: Some("/l".into()),
        level: Some(LogLevel::Warning),
        show_level: true,
        show_log_origin: true,
        module: Some("vmm".into()),
    };
    client.put_logger(&logger).await.unwrap();
}

async fn run(client: &Client) {
    client.start_instance().await.unwrap();
    client.pause().await.unwrap();
    for snapshot_type in [SnapshotType::Full, SnapshotType::Diff] {
        let snapshot =
            SnapshotCreate { snapshot_type, snapshot_path: "/s".into(), mem_file_path: "/m".into() };
        client.create_snapshot(&snapshot).await.unwrap();
    }
    client.resume().await.unwrap();
    client.load_snapshot(&full_load()).await.unwrap();
    client.get_info().await.unwrap();
    client.get_version().await.unwrap();
}

#[test]
fn every_request_conforms() {
    let Some(spec) = Spec::load() else { return };
    let requests = block_on(async {
        let peer = Peer::start(agree);
        let client = Client::new(&peer.socket, Timeouts::default());
        configure(&client).await;
        run(&client).await;
        peer.requests()
    });
    let mut routes = BTreeSet::new();
    for Recorded { method, path, body, .. } in &requests {
        spec.check_request(method, path, body).unwrap_or_else(|why| panic!("{method} {path}: {why}"));
        routes.insert(format!("{method} {}", spec.route(method, path).unwrap().0));
    }
    let expected = [
        "GET /",
        "GET /version",
        "PATCH /vm",
        "PUT /actions",
        "PUT /boot-source",
        "PUT /drives/{drive_id}",
        "PUT /entropy",
        "PUT /logger",
        "PUT /machine-config",
        "PUT /network-interfaces/{iface_id}",
        "PUT /snapshot/create",
        "PUT /snapshot/load",
    ];
    assert_eq!(routes.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

/// The check itself must be able to fail.
#[test]
fn what_does_not_conform_is_found() {
    let Some(spec) = Spec::load() else { return };
    for (method, path, body, why) in [
        ("PUT", "/nowhere", "{}", "no route /nowhere"),
        ("DELETE", "/vm", "{}", "/vm has no DELETE"),
        ("PATCH", "/vm", r#"{"state":"Flying"}"#, "none of"),
        ("PATCH", "/vm", "{}", "lacks the field state"),
        ("PUT", "/machine-config", r#"{"vcpu_count":33,"mem_size_mib":1}"#, "not within 1 and 32"),
        ("PUT", "/machine-config", r#"{"vcpu_count":"1","mem_size_mib":1}"#, "not of type integer"),
        (
            "PUT",
            "/entropy",
            r#"{"rate_limiter":{"ops":{"size":1,"refill_time":-1}}}"#,
            "body.rate_limiter.ops",
        ),
        ("PUT", "/logger", r#"{"colour":true}"#, "no field colour"),
        ("GET", "/", "{}", "takes no body"),
    ] {
        let found = spec.check_request(method, path, body.as_bytes()).unwrap_err();
        assert!(found.contains(why), "{found}");
    }
    assert!(spec.check_response("PATCH", "/vm", 200, b"").unwrap_err().contains("cannot answer 200"));
    assert!(spec.check_response("PATCH", "/vm", 204, b"{}").unwrap_err().contains("has no body"));
    assert!(spec.check_response("GET", "/version", 200, b"{}").unwrap_err().contains("lacks the field"));
    spec.check_response("PATCH", "/vm", 500, br#"{"fault_message":"no"}"#).unwrap();
}
