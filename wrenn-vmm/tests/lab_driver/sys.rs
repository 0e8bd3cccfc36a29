//! The guest's program, in assembly: small enough to need no compiler for guests, no C library and no image.
//!
//! It is process 1 of the guest. A bare word on the kernel's command line becomes its argument:
//! - `wrenn_tick`: prints `tick 00001`, `tick 00002`, … for ever; the count lives in its memory alone.
//! - `wrenn_off`: powers off. `wrenn_restart`: reboots.
//! - anything else: it exits, at which the kernel panics.
//!
//! Before that it loads `/0.ko` and `/1.ko` where they exist: the driver through which a panic is told.

use std::arch::global_asm;

global_asm!(
    ".pushsection .rodata.wrenn_test_guest, \"a\"",
    ".global wrenn_test_guest_start",
    ".global wrenn_test_guest_end",
    "wrenn_test_guest_start:",
    "cmp qword ptr [rsp], 2",
    "jl 8f",
    "lea rdi, [rip + 90f]",
    "call 70f",
    "lea rdi, [rip + 91f]",
    "call 70f",
    // The seventh letter of the argument tells them apart.
    "mov rbx, [rsp + 16]",
    "mov bl, [rbx + 6]",
    "mov edx, 0x4321fedc", // LINUX_REBOOT_CMD_POWER_OFF
    "cmp bl, 'o'",
    "je 7f",
    "mov edx, 0x01234567", // LINUX_REBOOT_CMD_RESTART
    "cmp bl, 'r'",
    "je 7f",
    "cmp bl, 't'",
    "je 2f",
    "8: mov eax, 60", // exit
    "xor edi, edi",
    "syscall",
    "7: mov edi, 0xfee1dead", // reboot, with its two magic numbers
    "mov esi, 672274793",
    "mov eax, 169",
    "syscall",
    "jmp 8b",
    "2: sub rsp, 64",
    "movabs rax, 0x303030206b636974", // "tick 000"
    "mov [rsp], rax",
    "mov dword ptr [rsp + 8], 0x000a3030", // "00\n"
    "mov qword ptr [rsp + 32], 0",         // a timespec of 50 ms
    "mov qword ptr [rsp + 40], 50000000",
    "3: lea rdi, [rsp + 9]",
    "4: inc byte ptr [rdi]",
    "cmp byte ptr [rdi], '9'",
    "jle 5f",
    "mov byte ptr [rdi], '0'",
    "dec rdi",
    "jmp 4b",
    "5: mov eax, 1", // write
    "mov edi, 1",
    "mov rsi, rsp",
    "mov edx, 11",
    "syscall",
    "mov eax, 35", // nanosleep
    "lea rdi, [rsp + 32]",
    "xor esi, esi",
    "syscall",
    "jmp 3b",
    "70: mov eax, 2", // open
    "xor esi, esi",
    "syscall",
    "mov edi, eax",
    "lea rsi, [rip + 92f]",
    "xor edx, edx",
    "mov eax, 313", // finit_module
    "syscall",
    "ret",
    "90: .asciz \"/0.ko\"",
    "91: .asciz \"/1.ko\"",
    "92: .asciz \"\"",
    "wrenn_test_guest_end:",
    ".popsection",
);

unsafe extern "C" {
    static wrenn_test_guest_start: u8;
    static wrenn_test_guest_end: u8;
}

/// The program's code; it runs at whatever address it is loaded at.
pub(crate) fn guest_code() -> &'static [u8] {
    let (start, end) = (&raw const wrenn_test_guest_start, &raw const wrenn_test_guest_end);
    // SAFETY: the two labels above enclose one piece of read-only data, the first before the second.
    unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }
}
