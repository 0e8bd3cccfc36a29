//! Where things are in the guest's physical address space and on its interrupt lines.
//!
//! ```text
//! 0x0000_0500  boot GDT, IDT            \
//! 0x0000_6000  PVH start info, memmap    | read once by the kernel's entry code,
//! 0x0000_7000  zero page (boot_params)   | in conventional memory (ends at 0x9_fc00)
//! 0x0000_9000  page tables               |
//! 0x0002_0000  command line             /
//! 0x000e_0000  ACPI tables, RSDP first (reserved in the memory map)
//! 0x0010_0000  kernel
//! 0xc000_0000  hole: RAM goes on at 4 GiB
//! 0xd000_0000  virtio-mmio windows, one page each
//! 0xfec0_0000  IOAPIC, 0xfee0_0000 local APIC (in the kernel)
//! ```
//!
//! Invariant: a snapshot's devices stand at these addresses, so a change here is a change of the snapshot
//! format's version.

/// The page size of guest memory, of dirty tracking and of memory files.
pub(crate) const PAGE_SIZE: u64 = 4096;

/// Where RAM stops to leave room for devices.
pub(crate) const MMIO_GAP_START: u64 = 0xc000_0000;
/// Where RAM goes on.
pub(crate) const MMIO_GAP_END: u64 = 1 << 32;

/// The end of conventional memory below 1 MiB.
pub(crate) const LOW_RAM_END: u64 = 0x9_fc00;
/// The start of extended memory, where kernels are loaded.
pub(crate) const HIGH_RAM_START: u64 = 0x10_0000;

/// The boot GDT.
pub(crate) const BOOT_GDT: u64 = 0x500;
/// The boot IDT: one empty entry.
pub(crate) const BOOT_IDT: u64 = 0x520;
/// The PVH `hvm_start_info`; its module list follows at [`PVH_MODULES`].
pub(crate) const PVH_INFO: u64 = 0x6000;
/// The PVH module list: the initrd.
pub(crate) const PVH_MODULES: u64 = 0x6040;
/// The PVH memory map.
pub(crate) const PVH_MEMMAP: u64 = 0x6100;
/// The Linux boot protocol's `boot_params`.
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// The level 4 page table; level 3 and level 2 follow, one page each.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// Room for the command line, its NUL included (x86 `COMMAND_LINE_SIZE`).
pub(crate) const CMDLINE_SIZE: usize = 2048;

/// The ACPI tables, the RSDP first: the range that a BIOS search would look through.
pub(crate) const ACPI_START: u64 = 0xe_0000;
/// The end of the room for ACPI tables.
pub(crate) const ACPI_END: u64 = HIGH_RAM_START;

/// The IOAPIC's registers (KVM's own place for them).
pub(crate) const IOAPIC_BASE: u32 = 0xfec0_0000;
/// The local APIC's registers.
pub(crate) const LAPIC_BASE: u32 = 0xfee0_0000;

/// The first virtio-mmio window.
pub(crate) const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// The size of a virtio-mmio window.
pub(crate) const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The first interrupt line of a virtio device.
pub(crate) const VIRTIO_GSI_BASE: u32 = 5;
/// How many virtio devices there can be: the IOAPIC has 24 lines.
pub(crate) const MAX_VIRTIO_DEVICES: usize = 24 - VIRTIO_GSI_BASE as usize;

/// COM1's ports.
pub(crate) const SERIAL_PORT: u16 = 0x3f8;
/// The number of COM1's ports.
pub(crate) const SERIAL_PORT_COUNT: u16 = 8;
/// COM1's interrupt line.
pub(crate) const SERIAL_GSI: u32 = 4;

/// The keyboard controller's first port; only its reset command (0xfe to port 0x64) does anything.
pub(crate) const I8042_PORT: u16 = 0x60;
/// The number of the keyboard controller's ports.
pub(crate) const I8042_PORT_COUNT: u16 = 5;
/// The keyboard controller's command port.
pub(crate) const I8042_COMMAND_PORT: u16 = 0x64;
/// The keyboard controller command that pulses the reset line.
pub(crate) const I8042_RESET: u8 = 0xfe;

/// The pvpanic port (QEMU's specification of the device `QEMU0001`).
pub(crate) const PVPANIC_PORT: u16 = 0x505;
/// The number of pvpanic's ports.
pub(crate) const PVPANIC_PORT_COUNT: u16 = 1;

/// The ACPI sleep control register; the sleep status register follows it.
pub(crate) const SLEEP_PORT: u16 = 0x600;
/// The two sleep registers' ports.
pub(crate) const SLEEP_PORT_COUNT: u16 = 2;

/// The window of the virtio device in `slot`.
pub(crate) fn virtio_base(slot: usize) -> u64 {
    VIRTIO_MMIO_BASE + slot as u64 * VIRTIO_MMIO_SIZE
}

/// The interrupt line of the virtio device in `slot`, which is below [`MAX_VIRTIO_DEVICES`].
pub(crate) fn virtio_gsi(slot: usize) -> u32 {
    VIRTIO_GSI_BASE + slot as u32
}
