//! Images, copy-on-write root disks, layered memory images and the snapshot store.
#![deny(unsafe_code)]

mod disk;
pub mod durable;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod memory;
mod snapshot;
mod working_set;

pub use disk::{
    BackendChoice, BackendKind, CloneKind, CowFault, DiskError, DiskSpec, Flattened, RootDisk, RootDisks,
    clone_file, loop_devices_under, mapped_devices_of,
};
pub use image::{
    Collision, Digest, GuestDetails, GuestFiles, Image, ImageDetails, ImageError, ImageList, ImageRegistry,
    KernelFormat, StagedGuest, StagedImage,
};
pub use memory::{
    ImageIdentity, ImageUsage, ImageWriter, Imported, LayerDir, LayerId, MemoryError, MemoryImage,
    MemoryReader, MemoryRun, PAGE_SIZE, RunKind,
};
pub use snapshot::{Snapshot, SnapshotError, SnapshotStore, StagedSnapshot};
pub use working_set::{PageRun, WorkingSet, WorkingSetError, WorkingSetFault};
