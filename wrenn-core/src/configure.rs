//! What a monitor is told before it boots a fresh machine.

use wrenn_base::SandboxId;
use wrenn_net::{GuestNet, Slot};
use wrenn_storage::GuestFiles;
use wrenn_vmm::api::{BootSource, CacheType, Drive, EntropyDevice, MachineConfig, NetworkInterface};
use wrenn_vmm::{MonitorProcess, ROOT_DISK_PATH};

use crate::assembly::Identity;
use crate::disk_limit::DiskLimit;
use crate::error::Cause;
use crate::spec::SandboxSpec;

/// Tells a fresh monitor what machine to be.
pub(crate) async fn configure(
    monitor: &MonitorProcess,
    identity: &Identity,
    guest: &GuestFiles,
    slot: &Slot,
    track_dirty_pages: bool,
) -> Result<(), Cause> {
    let SandboxSpec { vcpus, memory, disk_limit, .. } = &identity.spec;
    let client = monitor.client();
    client
        .put_machine_config(&MachineConfig {
            vcpu_count: *vcpus,
            mem_size_mib: memory.0 as usize,
            track_dirty_pages,
            ..MachineConfig::default()
        })
        .await?;
    client
        .put_boot_source(&BootSource {
            kernel_image_path: guest.kernel.clone(),
            initrd_path: Some(guest.initramfs.clone()),
            boot_args: Some(command_line(&identity.id, slot.guest())),
        })
        .await?;
    client
        .put_drive(&Drive {
            drive_id: "root".into(),
            path_on_host: Some(ROOT_DISK_PATH.into()),
            // The initramfs mounts it: the monitor must not add `root=` to the command line.
            is_root_device: false,
            is_read_only: Some(false),
            // A guest's `sync` reaches the disk.
            cache_type: Some(CacheType::Writeback),
            rate_limiter: disk_limit.map(DiskLimit::limiter),
            ..Drive::default()
        })
        .await?;
    client
        .put_network_interface(&NetworkInterface {
            iface_id: "eth0".into(),
            host_dev_name: slot.tap().into(),
            guest_mac: Some(slot.guest().mac.to_string()),
            ..NetworkInterface::default()
        })
        .await?;
    client.put_entropy(&EntropyDevice::default()).await?;
    Ok(())
}

/// The kernel's command line: a quiet boot (every byte on the serial console costs a VM exit), no waiting after a
/// panic, and what the agent needs before it can be talked to.
fn command_line(id: &SandboxId, net: &GuestNet) -> String {
    let dns: Vec<String> = net.dns.iter().map(ToString::to_string).collect();
    format!(
        "console=ttyS0 quiet loglevel=1 reboot=k panic=-1 random.trust_cpu=on \
         wrenn.root=/dev/vda wrenn.ip={}/{} wrenn.gw={} wrenn.dns={} wrenn.hostname={id}",
        net.ip,
        net.prefix,
        net.gateway,
        dns.join(","),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_what_the_agent_reads() {
        let id = SandboxId::random();
        let line = command_line(&id, &GuestNet::new(vec![[1, 1, 1, 1].into()]));
        assert!(line.starts_with("console=ttyS0 quiet "));
        assert!(line.contains(" wrenn.ip=169.254.0.21/30 wrenn.gw=169.254.0.22 wrenn.dns="));
        assert!(line.ends_with(&format!("wrenn.hostname={id}")));
        // COMMAND_LINE_SIZE of x86 is 2048; Firecracker adds its own words to ours.
        assert!(line.len() < 1024);
    }
}
