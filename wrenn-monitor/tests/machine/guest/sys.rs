//! The one instruction that a guest's init needs and that takes unsafe code.

use std::io;

/// Writes `value` to the I/O port `port`.
pub(super) fn write_port(port: u16, value: u8) -> io::Result<()> {
    // SAFETY: it changes nothing but the process's right to do what follows.
    if unsafe { libc::iopl(3) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the process may, and no memory is involved.
    unsafe { std::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
    Ok(())
}
