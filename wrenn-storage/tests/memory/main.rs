//! Memory images on real files: against a model, damaged in every way, and on the file systems that matter.

mod damage;
mod filesystems;
mod golden;
mod model;
mod property;
