//! Unpacking the layers of a container image into a root directory.
//!
//! A layer is a tar archive of what changed against the layers below it; the OCI image specification ("Image Layer
//! Filesystem Changeset") has the format. It is unpacked by root and comes from strangers, so:
//!
//! - **Nothing outside of the root is reached.** Every name is taken apart into components, `..` is refused, and each
//!   component is opened by itself, beneath the one before, with the kernel told not to follow links. Where a
//!   component on the way to an entry is a symbolic link, its target is read and walked in the same manner, as a process
//!   inside of the root would see it: an absolute target begins at the root, and `..` ends there. That is what container
//!   runtimes do, and images rely on it where `/lib` is a link to `usr/lib`. The last component is never followed: what is
//!   there is replaced. A link whose way leads through a file is refused.
//! - **Everything is bounded:** the number of entries and the bytes of all layers ([`Limits`]), and the length of names, the
//!   depth of directories, extended headers and attributes, whatever an archive says their sizes are.
//! - **Nothing is guessed.** What cannot be unpacked as it is, such as a sparse file, is an error that names the layer and
//!   the entry. Only device nodes and attributes that this process may not make are left out, and counted.
//!
//! Whiteouts hide what lower layers have, never what the same layer brings, in whatever order it lists both.
//!
//! The `tar` crate reads the headers. The records of extended headers are read here ([`pax`]): that crate takes them apart at
//! newlines, which binary attributes may contain, and holds an extended header in memory whatever its size.

mod apply;
mod entry;
mod error;
mod pax;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use apply::Unpacker;
pub(crate) use error::LayerError;

/// The bounds of what is unpacked, over all layers of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Entries, extended headers among them.
    pub(crate) entries: u64,
    /// Bytes of the plain tar archives, which is never less than what the files take.
    pub(crate) bytes: u64,
}

impl Default for Limits {
    /// More than any image in use has, and less than would fill a server's disk or memory.
    fn default() -> Self {
        Self { entries: 4_000_000, bytes: 64 << 30 }
    }
}

/// What came out of the layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// How many entries were applied.
    pub(crate) entries: u64,
    /// How many device nodes and attributes this process was not allowed to make.
    pub(crate) left_out: u64,
}
