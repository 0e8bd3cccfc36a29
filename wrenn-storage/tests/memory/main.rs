//! Memory images on real files: against a model, damaged in every way, and on the file systems that matter.

mod compact;
mod damage;
mod disk_full;
mod filesystems;
mod golden;
mod model;
mod mount;
mod property;
mod share;
mod writer;
