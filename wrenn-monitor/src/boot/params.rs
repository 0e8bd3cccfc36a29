//! What a kernel is told at its entry: command line, initial RAM disk, memory map, where ACPI is.
//!
//! Sources: the kernel's `arch/x86/boot.rst` and `zero-page.rst`, Xen's `docs/misc/pvh.pandoc`.

use std::io;
use std::path::Path;

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::kernel::LoadedKernel;
use super::{BootError, Protocol};
use crate::file::open_to_read;
use crate::layout::{self, CMDLINE, CMDLINE_SIZE, HIGH_RAM_START, LOW_RAM_END, MMIO_GAP_START, PAGE_SIZE};
use crate::memory::GuestMemory;
use crate::vcpu::entry;

/// `HVM_START_MAGIC_VALUE`.
const PVH_MAGIC: u32 = 0x336e_c578;
/// `boot_flag` and `header` of a boot sector.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without a number of its own.
const LOADER_UNKNOWN: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x20_0000;

/// The types of a memory map, the same in E820 and PVH.
const USABLE: u32 = 1;
const RESERVED: u32 = 2;

/// A range of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MapEntry {
    start: u64,
    end: u64,
    kind: u32,
}

/// A range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Range {
    pub(super) address: u64,
    pub(super) size: u64,
}

/// Puts everything in place for the kernel's entry.
pub(super) fn write(
    guest: &GuestMemory,
    kernel: &LoadedKernel,
    cmdline: &str,
    initrd: Option<Range>,
) -> Result<(), BootError> {
    write_cmdline(guest, cmdline)?;
    let gdt = entry::gdt(kernel.entry.protocol);
    put(guest, layout::BOOT_GDT, &gdt.map(u64::to_le_bytes).concat())?;
    match kernel.entry.protocol {
        Protocol::Pvh => write_pvh(guest, initrd),
        Protocol::Linux64 => {
            let tables: Vec<u8> = entry::page_tables().iter().flat_map(|word| word.to_le_bytes()).collect();
            put(guest, layout::PAGE_TABLES, &tables)?;
            write_zero_page(guest, kernel, cmdline, initrd)
        }
    }
}

/// Loads the initial RAM disk at the top of low memory, above the kernel.
pub(super) fn load_initrd(
    guest: &GuestMemory,
    path: &Path,
    kernel: &LoadedKernel,
) -> Result<Range, BootError> {
    let (mut file, metadata) = open_to_read(path)?;
    let size = metadata.len();
    let no_room = || BootError::InitrdTooLarge { path: path.to_owned(), size };
    let limit = kernel.setup.map_or(u64::from(u32::MAX), |setup| { setup.initrd_addr_max }.into());
    let top = low_end(guest).min(limit.saturating_add(1));
    let address = top.checked_sub(size).ok_or_else(no_room)? & !(PAGE_SIZE - 1);
    if address < kernel.end.max(HIGH_RAM_START) {
        return Err(no_room());
    }
    guest
        .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
        .map_err(|source| BootError::Initrd { path: path.to_owned(), source: memory_error(source) })?;
    Ok(Range { address, size })
}

fn write_cmdline(guest: &GuestMemory, cmdline: &str) -> Result<(), BootError> {
    check_cmdline(cmdline)?;
    let terminated: Vec<u8> = cmdline.bytes().chain([0]).collect();
    put(guest, CMDLINE, &terminated)
}

/// Whether a kernel can be given this command line.
pub(crate) fn check_cmdline(cmdline: &str) -> Result<(), BootError> {
    if cmdline.len() >= CMDLINE_SIZE {
        return Err(BootError::CmdlineTooLong { len: cmdline.len() });
    }
    if cmdline.contains('\0') {
        return Err(BootError::CmdlineHasNul);
    }
    Ok(())
}

fn write_pvh(guest: &GuestMemory, initrd: Option<Range>) -> Result<(), BootError> {
    let entries: Vec<_> = memory_map(guest)
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.end - entry.start,
            type_: entry.kind,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: layout::PVH_MODULES,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: layout::ACPI_START,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: entries.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(layout::PVH_INFO));
    params.set_sections(&entries, GuestAddress(layout::PVH_MEMMAP));
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry { paddr: initrd.address, size: initrd.size, ..Default::default() };
        params.set_modules(&[module], GuestAddress(layout::PVH_MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, guest).map_err(BootError::Params)
}

fn write_zero_page(
    guest: &GuestMemory,
    kernel: &LoadedKernel,
    cmdline: &str,
    initrd: Option<Range>,
) -> Result<(), BootError> {
    let mut params = boot_params { acpi_rsdp_addr: layout::ACPI_START, ..Default::default() };
    params.hdr = kernel.setup.unwrap_or_default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNKNOWN;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.cmdline_size = cmdline.len() as u32;
    if kernel.setup.is_none() {
        params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    }
    let initrd = initrd.unwrap_or_default();
    params.hdr.ramdisk_image = initrd.address as u32;
    params.hdr.ramdisk_size = initrd.size as u32;
    let map = memory_map(guest);
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry { addr: entry.start, size: entry.end - entry.start, r#type: entry.kind };
    }
    params.e820_entries = map.len() as u8;
    let params = BootParams::new(&params, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, guest).map_err(BootError::Params)
}

/// What is RAM, and where the ACPI tables are.
fn memory_map(guest: &GuestMemory) -> Vec<MapEntry> {
    let mut map = vec![
        MapEntry { start: 0, end: LOW_RAM_END, kind: USABLE },
        MapEntry { start: layout::ACPI_START, end: layout::ACPI_END, kind: RESERVED },
        MapEntry { start: HIGH_RAM_START, end: low_end(guest), kind: USABLE },
    ];
    map.extend(guest.iter().skip(1).map(|region| {
        let start = region.start_addr().0;
        MapEntry { start, end: start + region.len(), kind: USABLE }
    }));
    map
}

/// The end of memory below the hole for devices.
fn low_end(guest: &GuestMemory) -> u64 {
    guest.iter().next().map_or(0, GuestMemoryRegion::len).min(MMIO_GAP_START)
}

pub(super) fn put(guest: &GuestMemory, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    guest.write_slice(bytes, GuestAddress(address)).map_err(|source| BootError::Write { address, source })
}

fn memory_error(error: vm_memory::GuestMemoryError) -> io::Error {
    match error {
        vm_memory::GuestMemoryError::IOError(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use linux_loader::bootparam::setup_header;

    use super::*;
    use crate::boot::Entry;
    use crate::memory::{Memory, RegionSpec, regions_of};

    const MIB: u64 = 1 << 20;

    fn kernel(protocol: Protocol, end: u64, setup: Option<setup_header>) -> LoadedKernel {
        LoadedKernel { entry: Entry { protocol, address: 0 }, end, setup }
    }

    fn initrd_file(size: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0x5a; size]).unwrap();
        file
    }

    #[test]
    fn the_initrd_lies_at_the_top_of_low_memory() {
        let memory = Memory::fresh(&regions_of(64 * MIB)).unwrap();
        let file = initrd_file(5000);
        let kernel = kernel(Protocol::Pvh, 32 * MIB, None);
        let range = load_initrd(memory.guest(), file.path(), &kernel).unwrap();
        assert_eq!(range, Range { address: 64 * MIB - 8192, size: 5000 });
        let last: u8 = memory.guest().read_obj(GuestAddress(range.address + 4999)).unwrap();
        assert_eq!(last, 0x5a);
    }

    #[test]
    fn an_initrd_that_would_touch_the_kernel_is_refused() {
        let memory = Memory::fresh(&regions_of(64 * MIB)).unwrap();
        let file = initrd_file(5000);
        for kernel in [
            kernel(Protocol::Pvh, 64 * MIB - 8191, None),
            kernel(
                Protocol::Linux64,
                32 * MIB,
                Some(setup_header { initrd_addr_max: 4000, ..Default::default() }),
            ),
        ] {
            let refused = load_initrd(memory.guest(), file.path(), &kernel).unwrap_err();
            assert!(matches!(refused, BootError::InitrdTooLarge { size: 5000, .. }), "{refused}");
        }
    }

    #[test]
    fn command_lines_are_bounded() {
        assert!(check_cmdline(&"x".repeat(CMDLINE_SIZE - 1)).is_ok());
        assert!(matches!(check_cmdline(&"x".repeat(CMDLINE_SIZE)), Err(BootError::CmdlineTooLong { .. })));
        assert!(matches!(check_cmdline("a\0b"), Err(BootError::CmdlineHasNul)));
    }

    #[test]
    fn pvh_info_tells_of_memory_initrd_and_acpi() {
        let regions =
            [RegionSpec { address: 0, size: 64 * MIB }, RegionSpec { address: 1 << 32, size: 2 * MIB }];
        let memory = Memory::fresh(&regions).unwrap();
        let range = Range { address: 0x300_0000, size: 77 };
        write(memory.guest(), &kernel(Protocol::Pvh, 0, None), "quiet", Some(range)).unwrap();
        let word = |address| memory.guest().read_obj::<u64>(GuestAddress(address)).unwrap();
        let half = |address| memory.guest().read_obj::<u32>(GuestAddress(address)).unwrap();
        assert_eq!(half(layout::PVH_INFO), PVH_MAGIC);
        assert_eq!(half(layout::PVH_INFO + 12), 1, "modules");
        assert_eq!(half(layout::PVH_INFO + 48), 4, "memory map entries");
        assert_eq!(word(layout::PVH_INFO + 32), layout::ACPI_START);
        assert_eq!((word(layout::PVH_MODULES), word(layout::PVH_MODULES + 8)), (0x300_0000, 77));
        let last = layout::PVH_MEMMAP + 3 * 24;
        assert_eq!((word(last), word(last + 8), half(last + 16)), (1 << 32, 2 * MIB, USABLE));
        let mut cmdline = [0; 6];
        memory.guest().read_slice(&mut cmdline, GuestAddress(CMDLINE)).unwrap();
        assert_eq!(&cmdline, b"quiet\0");
    }

    #[test]
    fn the_zero_page_keeps_the_kernels_own_header() {
        let memory = Memory::fresh(&regions_of(64 * MIB)).unwrap();
        let setup = setup_header { init_size: 0x1234, ..Default::default() };
        write(memory.guest(), &kernel(Protocol::Linux64, 0, Some(setup)), "", None).unwrap();
        let params: boot_params = memory.guest().read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        assert_eq!({ params.hdr.init_size }, 0x1234);
        assert_eq!({ params.hdr.boot_flag }, BOOT_FLAG);
        assert_eq!(params.e820_entries, 3);
        assert_eq!({ params.acpi_rsdp_addr }, layout::ACPI_START);
        let entry: u64 = memory.guest().read_obj(GuestAddress(layout::PAGE_TABLES)).unwrap();
        assert_eq!(entry, (layout::PAGE_TABLES + PAGE_SIZE) | 3);
    }
}
