//! Kernel images: telling them from everything else, and loading them.
//!
//! Two kinds are known. An ELF `vmlinux` is entered through its PVH note where it has one, else by the 64-bit
//! Linux boot protocol; a bzImage by the latter.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::bootparam::{XLF_KERNEL_64, setup_header};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::GuestAddress;

use super::{Entry, Protocol};
use crate::file::{FileError, open_to_read};
use crate::layout::HIGH_RAM_START;
use crate::memory::GuestMemory;

/// A kernel could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    #[error("there is no kernel to boot")]
    File(#[from] FileError),
    #[error("the kernel {path:?} could not be read")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path:?} is no kernel: it is neither an ELF vmlinux nor a bzImage")]
    Unknown { path: PathBuf },
    #[error("{path:?} is no kernel for this machine: {what}")]
    Unsuitable { path: PathBuf, what: &'static str },
    #[error("the kernel {path:?} could not be loaded: it is damaged, or larger than the guest's memory")]
    Load { path: PathBuf, source: linux_loader::loader::Error },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Elf,
    BzImage,
}

/// A file that is a kernel by its looks.
#[derive(Debug)]
pub(crate) struct Kernel {
    path: PathBuf,
    file: File,
    kind: Kind,
}

/// A kernel in guest memory.
#[derive(Debug)]
pub(crate) struct LoadedKernel {
    pub(crate) entry: Entry,
    /// The first address that the kernel leaves free, also while it unpacks itself.
    pub(crate) end: u64,
    /// The header that a bzImage brings along.
    pub(crate) setup: Option<setup_header>,
}

impl Kernel {
    /// Opens the file at `path`, if it is a kernel.
    pub(crate) fn open(path: &Path) -> Result<Self, KernelError> {
        let (file, metadata) = open_to_read(path)?;
        let read = |source| KernelError::Read { path: path.to_owned(), source };
        let mut head = vec![0; metadata.len().min(4096) as usize];
        file.read_exact_at(&mut head, 0).map_err(read)?;
        let kind = match identify(&head) {
            Some(Ok(kind)) => kind,
            Some(Err(what)) => return Err(KernelError::Unsuitable { path: path.to_owned(), what }),
            None => return Err(KernelError::Unknown { path: path.to_owned() }),
        };
        Ok(Self { path: path.to_owned(), file, kind })
    }

    /// Loads the kernel.
    pub(crate) fn load(&self, guest: &GuestMemory) -> Result<LoadedKernel, KernelError> {
        let read = |source| KernelError::Read { path: self.path.clone(), source };
        let load = |source| KernelError::Load { path: self.path.clone(), source };
        // A descriptor of its own, since loading moves the position and a failed start may be tried again.
        let mut file = self.file.try_clone().map_err(read)?;
        let high_ram = Some(GuestAddress(HIGH_RAM_START));
        match self.kind {
            Kind::Elf => {
                let loaded = Elf::load(guest, None, &mut file, high_ram).map_err(load)?;
                let entry = match loaded.pvh_boot_cap {
                    PvhBootCapability::PvhEntryPresent(address) => {
                        Entry { protocol: Protocol::Pvh, address: address.0 }
                    }
                    _ => Entry { protocol: Protocol::Linux64, address: loaded.kernel_load.0 },
                };
                Ok(LoadedKernel { entry, end: loaded.kernel_end, setup: None })
            }
            Kind::BzImage => {
                let loaded = BzImage::load(guest, None, &mut file, high_ram).map_err(load)?;
                let setup = loaded.setup_header.unwrap_or_default();
                // The 64-bit entry is 0x200 bytes into the protected-mode part (boot.rst).
                let entry = Entry { protocol: Protocol::Linux64, address: loaded.kernel_load.0 + 0x200 };
                let unpacked = { setup.pref_address }.saturating_add({ setup.init_size }.into());
                Ok(LoadedKernel { entry, end: loaded.kernel_end.max(unpacked), setup: Some(setup) })
            }
        }
    }
}

/// What the first bytes of a file say; `None` if they are of no kernel at all, an error if of one that cannot run
/// here.
fn identify(head: &[u8]) -> Option<Result<Kind, &'static str>> {
    if head.starts_with(b"\x7fELF") {
        return Some(identify_elf(head).map(|()| Kind::Elf));
    }
    if bytes::<4>(head, 0x202)? != *b"HdrS" {
        return None;
    }
    let (version, flags) = (u16::from_le_bytes(bytes(head, 0x206)?), u16::from_le_bytes(bytes(head, 0x236)?));
    // xloadflags came with protocol 2.12.
    if version < 0x20c || flags & XLF_KERNEL_64 == 0 {
        return Some(Err("the bzImage has no 64-bit entry"));
    }
    Some(Ok(Kind::BzImage))
}

/// Tells a Linux kernel from a program: it is for 64-bit x86, and lives in the upper half of the address space.
///
/// Source: the System V ABI, "ELF-64 Object File Format".
fn identify_elf(head: &[u8]) -> Result<(), &'static str> {
    const DAMAGED: &str = "its ELF header is damaged";
    const CLASS_64: u8 = 2;
    const X86_64: u16 = 62;
    const PROGRAM_HEADER: usize = 56;
    const LOAD: u32 = 1;
    const UPPER_HALF: u64 = 0xffff_8000_0000_0000;

    let word = |at| bytes(head, at).map(u16::from_le_bytes).ok_or(DAMAGED);
    if bytes(head, 4) != Some([CLASS_64]) || word(18)? != X86_64 {
        return Err("it is not for 64-bit x86");
    }
    let table = u64::from_le_bytes(bytes(head, 32).ok_or(DAMAGED)?);
    let table = usize::try_from(table).map_err(|_| DAMAGED)?;
    let mut segments = (0..usize::from(word(56)?)).map_while(|number| {
        let at = table.checked_add(number * PROGRAM_HEADER)?;
        let kind = u32::from_le_bytes(bytes(head, at)?);
        let address = u64::from_le_bytes(bytes(head, at.checked_add(16)?)?);
        Some((kind, address))
    });
    let is_kernel = segments.any(|(kind, address)| kind == LOAD && address >= UPPER_HALF);
    if is_kernel { Ok(()) } else { Err("it is a program") }
}

fn bytes<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory::{Memory, regions_of};

    /// An ELF header and one segment of `size` bytes, loaded at 16 MiB.
    fn elf(machine: u16, virtual_address: u64, size: u64) -> Vec<u8> {
        let mut image = vec![0; 0x78 + size as usize];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(18, &machine.to_le_bytes());
        put(24, &0x100_0000u64.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &1u16.to_le_bytes());
        put(64, &1u32.to_le_bytes());
        put(72, &0x78u64.to_le_bytes());
        put(80, &virtual_address.to_le_bytes());
        put(88, &0x100_0000u64.to_le_bytes());
        put(96, &size.to_le_bytes());
        put(104, &(2 * size).to_le_bytes());
        image
    }

    fn bzimage(version: u16, flags: u16) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x202, b"HdrS");
        put(0x206, &version.to_le_bytes());
        put(0x211, &[1]);
        put(0x214, &0x10_0000u32.to_le_bytes());
        put(0x236, &flags.to_le_bytes());
        put(0x258, &0x20_0000u64.to_le_bytes());
        put(0x260, &0x30_0000u32.to_le_bytes());
        image
    }

    fn open(image: &[u8]) -> Result<Kernel, KernelError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(image).unwrap();
        Kernel::open(file.path())
    }

    fn memory() -> Memory {
        Memory::fresh(&regions_of(32 << 20)).unwrap()
    }

    #[test]
    fn an_elf_kernel_is_loaded_and_entered_where_it_says() {
        let loaded = open(&elf(62, u64::MAX - 0xffff, 0x100)).unwrap().load(memory().guest()).unwrap();
        assert_eq!(loaded.entry, Entry { protocol: Protocol::Linux64, address: 0x100_0000 });
        assert_eq!(loaded.end, 0x100_0200);
        assert!(loaded.setup.is_none());
    }

    #[test]
    fn a_bzimage_is_entered_at_its_64_bit_entry_and_keeps_room_to_unpack() {
        let loaded = open(&bzimage(0x20f, 1)).unwrap().load(memory().guest()).unwrap();
        assert_eq!(loaded.entry, Entry { protocol: Protocol::Linux64, address: 0x10_0200 });
        assert_eq!(loaded.end, 0x50_0000);
        assert!(loaded.setup.is_some());
    }

    #[test]
    fn what_is_no_kernel_is_refused_by_name() {
        for image in [&b""[..], b"\x7f", b"#!/bin/sh\n", &[0; 8192]] {
            assert!(matches!(open(image), Err(KernelError::Unknown { .. })), "{image:?}");
        }
        for image in [
            b"\x7fELF".to_vec(),
            elf(183, u64::MAX, 8),
            elf(62, 0x40_0000, 8),
            bzimage(0x20b, 1),
            bzimage(0x20f, 0),
            std::fs::read(std::env::current_exe().unwrap()).unwrap(),
        ] {
            assert!(matches!(open(&image), Err(KernelError::Unsuitable { .. })));
        }
        assert!(matches!(Kernel::open(Path::new("/")), Err(KernelError::File(_))));
    }

    #[test]
    fn a_truncated_or_oversized_kernel_fails_to_load() {
        let mut image = elf(62, u64::MAX - 0xffff, 0x2000);
        image.truncate(0x1000);
        assert!(matches!(open(&image).unwrap().load(memory().guest()), Err(KernelError::Load { .. })));
        let image = elf(62, u64::MAX - 0xffff, 17 << 20);
        assert!(matches!(open(&image).unwrap().load(memory().guest()), Err(KernelError::Load { .. })));
    }
}
