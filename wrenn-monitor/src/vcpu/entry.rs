//! The registers with which the boot vCPU enters a kernel.
//!
//! Sources: the PVH boot protocol (Xen's `docs/misc/pvh.pandoc`), the kernel's `arch/x86/boot.rst` ("64-bit Boot
//! Protocol").

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use crate::boot::{Entry, Protocol};
use crate::layout;

const CR0_PROTECTED: u64 = 1 << 0;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set; interrupts are off.
const RFLAGS: u64 = 1 << 1;

/// The selectors that `boot.rst` asks for, and one for a task segment.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Points `vcpu` at the kernel's entry.
pub(crate) fn set(vcpu: &VcpuFd, entry: Entry) -> Result<(), errno::Error> {
    let mut regs = kvm_regs { rip: entry.address, rflags: RFLAGS, ..Default::default() };
    let mut sregs = vcpu.get_sregs()?;
    set_segments(&mut sregs, entry.protocol);
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
    match entry.protocol {
        Protocol::Pvh => regs.rbx = layout::PVH_INFO,
        Protocol::Linux64 => {
            regs.rsi = layout::ZERO_PAGE;
            sregs.cr0 |= CR0_PAGING;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
        }
    }
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&regs)
}

fn set_segments(sregs: &mut kvm_sregs, protocol: Protocol) {
    let long = protocol == Protocol::Linux64;
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    // Types: execute and read, read and write, both "accessed" (Intel SDM volume 3, table 3-1); busy 32-bit or
    // 64-bit TSS (table 3-2).
    sregs.cs =
        kvm_segment { selector: CODE_SELECTOR, type_: 0xb, l: long.into(), db: (!long).into(), ..flat };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 0x3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment { selector: TASK_SELECTOR, type_: 0xb, s: 0, g: 0, limit: 0x67, ..flat };
    (sregs.gdt.base, sregs.gdt.limit) = (layout::BOOT_GDT, size_of_val(&gdt(protocol)) as u16 - 1);
    (sregs.idt.base, sregs.idt.limit) = (layout::BOOT_IDT, 7);
}

/// The descriptor table that the segments came from: a kernel may load them again before it has its own.
pub(crate) fn gdt(protocol: Protocol) -> [u64; 5] {
    let code = match protocol {
        Protocol::Pvh => 0x00cf_9b00_0000_ffff,
        Protocol::Linux64 => 0x00af_9b00_0000_ffff,
    };
    [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]
}

/// Page tables that map the first GiB to itself, as words of the level 4, 3 and 2 tables in one piece.
pub(crate) fn page_tables() -> Vec<u64> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let table = |number: u64| layout::PAGE_TABLES + number * layout::PAGE_SIZE;
    let mut words = vec![0; 3 * 512];
    words[0] = table(1) | PRESENT_WRITABLE;
    words[512] = table(2) | PRESENT_WRITABLE;
    for (page, word) in (0u64..).zip(&mut words[1024..]) {
        *word = page << 21 | PRESENT_WRITABLE | LARGE;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_and_their_descriptors_agree() {
        for protocol in [Protocol::Pvh, Protocol::Linux64] {
            let mut sregs = kvm_sregs::default();
            set_segments(&mut sregs, protocol);
            let table = gdt(protocol);
            for segment in [sregs.cs, sregs.ds] {
                let descriptor = table[usize::from(segment.selector / 8)];
                let flags = descriptor >> 40;
                assert_eq!(flags & 0xf, u64::from(segment.type_), "type");
                assert_eq!(flags >> 7 & 1, u64::from(segment.present), "present");
                assert_eq!(flags >> 13 & 1, u64::from(segment.l), "long");
                assert_eq!(flags >> 14 & 1, u64::from(segment.db), "default size");
                assert_eq!(flags >> 15 & 1, u64::from(segment.g), "granularity");
            }
            assert_eq!(usize::from(sregs.gdt.limit), table.len() * 8 - 1);
            assert_eq!(table[usize::from(sregs.tr.selector / 8)] & 0xffff, u64::from(sregs.tr.limit));
        }
    }

    #[test]
    fn the_first_gib_is_mapped_to_itself() {
        let words = page_tables();
        assert_eq!((words[0], words[512]), (0xa003, 0xb003));
        assert_eq!((words[1024], words[1535]), (0x83, (511 << 21) | 0x83));
    }
}
