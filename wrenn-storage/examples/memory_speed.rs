//! How fast dumps and pages become layers, and layers are merged and read: a quick measurement in the directory given, or the
//! system's temporary one.
//!
//! `cargo run --release -p wrenn-storage --example memory_speed [MiB] [directory]`

use std::error::Error;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use wrenn_base::Bytes;
use wrenn_storage::{LayerDir, MemoryImage};

const PAGE: usize = 4096;

/// Page content that does not compress and is never zero.
fn fill(page: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in page.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// Writes every page for which `dirty` says so, and for `zero` ones zeros.
fn dump(
    path: &Path,
    pages: usize,
    dirty: impl Fn(usize) -> bool,
    zero: impl Fn(usize) -> bool,
) -> std::io::Result<()> {
    let file = File::create(path)?;
    file.set_len((pages * PAGE) as u64)?;
    let mut page = [0; PAGE];
    for number in (0..pages).filter(|number| dirty(*number)) {
        page.fill(0);
        if !zero(number) {
            fill(&mut page, number as u64 + 1);
        }
        file.write_all_at(&page, (number * PAGE) as u64)?;
    }
    Ok(())
}

fn report(what: &str, bytes: u64, took: Duration) {
    let (mib, ms) = (bytes as f64 / f64::from(1 << 20), took.as_secs_f64() * 1e3);
    println!("{what:<58} {mib:>8.1} MiB {ms:>9.1} ms {:>8.0} MiB/s", mib / took.as_secs_f64());
}

fn time<T>(what: impl FnOnce() -> T) -> Duration {
    let begun = Instant::now();
    std::hint::black_box(what());
    begun.elapsed()
}

/// The same guest and diffs without a dump, from memory.
fn pages_straight(pages: usize, layers: &LayerDir) -> Result<(), Box<dyn Error>> {
    let mut memory = vec![0; pages * PAGE];
    for (number, page) in memory.chunks_exact_mut(PAGE).enumerate().filter(|(number, _)| number / 64 % 2 == 0)
    {
        fill(page, number as u64 + 1);
    }
    let full =
        full_of_pages(&memory, layers, "full image of pages, half of them zero in runs of 64, made durable")?;
    for percent in [1, 10] {
        let dirty = |run: usize| (run * 2_654_435_761) % 100 < percent;
        let begun = Instant::now();
        let mut writer = full.write_diff()?;
        for (number, run) in memory.chunks(4 * PAGE).enumerate().filter(|(number, _)| dirty(*number)) {
            writer.put((number * 4 * PAGE) as u64, run)?;
        }
        let diff = writer.finish()?;
        let took = begun.elapsed();
        report(&format!("diff of pages, {percent}% in runs of 4, made durable"), diff.data.get(), took);
        println!("  {} of data, {} on disk", diff.data, diff.written);
    }
    // The worst there is: every page is a piece of its own on the disk.
    for (number, page) in memory.chunks_exact_mut(PAGE).enumerate() {
        if number % 2 == 0 { fill(page, number as u64 + 1) } else { page.fill(0) }
    }
    full_of_pages(&memory, layers, "full image of pages, every second one zero, made durable")?;
    Ok(())
}

fn full_of_pages(memory: &[u8], layers: &LayerDir, what: &str) -> Result<MemoryImage, Box<dyn Error>> {
    let begun = Instant::now();
    let mut writer = MemoryImage::write_full(Bytes(memory.len() as u64), layers)?;
    for (number, piece) in memory.chunks(1 << 20).enumerate() {
        writer.put((number << 20) as u64, piece)?;
    }
    let full = writer.finish()?;
    report(what, memory.len() as u64, begun.elapsed());
    println!("  {} of data, {} on disk", full.data, full.written);
    Ok(full.image)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mib: usize = args.next().map_or(Ok(512), |arg| arg.parse())?;
    let parent = args.next().map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(parent)?;
    let (pages, path) = (mib << 20 >> 12, dir.path().join("dump"));
    let size = Bytes((pages * PAGE) as u64);
    let layers = LayerDir::open(dir.path().join("layers"))?;

    // As Firecracker writes it: everything, of which here one run of 64 pages in two is zero.
    dump(&path, pages, |_| true, |page| page / 64 % 2 == 1)?;
    let begun = Instant::now();
    let full = MemoryImage::import_full(&path, size, &layers)?;
    report("full import, half of it zero pages, made durable", size.get(), begun.elapsed());
    println!("  {} of data, {} on disk", full.data, full.written);

    let mut image = full.image;
    for percent in [1, 10] {
        let dirty = |page: usize| (page / 4 * 2_654_435_761) % 100 < percent;
        dump(&path, pages, dirty, |page| page % 16 == 0)?;
        let begun = Instant::now();
        let diff = image.import_diff(&path)?;
        let took = begun.elapsed();
        report(
            &format!("diff import, {percent}% dirty in runs of 4 pages, made durable"),
            diff.data.get(),
            took,
        );
        println!("  {} of data, {} zero, {} on disk", diff.data, diff.zeros, diff.written);
        image = diff.image;
    }
    let begun = Instant::now();
    image.save(&dir.path().join("memory"))?;
    println!("saving the manifest ({} extents): {:.1?}", image.usage()?.extents, begun.elapsed());

    let begun = Instant::now();
    let merged = image.compact(|_| ControlFlow::Continue(()))?;
    report("merging the three layers, made durable", merged.data.get(), begun.elapsed());
    println!("  {} on disk; identity in {:.1?}", merged.written, time(|| merged.image.identity()));
    pages_straight(pages, &layers)?;

    let begun = Instant::now();
    let image = MemoryImage::open(&dir.path().join("memory"), &layers)?;
    println!("opening it: {:.1?}", begun.elapsed());
    let reader = image.reader();
    for (what, step) in
        [("first read, every block checked", 16), ("second read", 16), ("second read, page by page", 1)]
    {
        let mut buf = vec![0; step * PAGE];
        let begun = Instant::now();
        for offset in (0..pages).step_by(step) {
            reader.read((offset * PAGE) as u64, &mut buf)?;
        }
        report(what, size.get(), begun.elapsed());
    }
    let begun = Instant::now();
    let mut sum = 0;
    for page in 0..pages {
        sum += reader.lookup((page * 7919 % pages * PAGE) as u64, 65536).len;
    }
    println!(
        "lookup: {:.0} ns (mean run {} bytes)",
        begun.elapsed().as_nanos() as f64 / pages as f64,
        sum / pages as u64
    );
    Ok(())
}
