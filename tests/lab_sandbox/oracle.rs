//! The oracle: a guest program changes pages at random over many generations of pause and resume, and a model outside
//! does the same. Guest, model and the image on disk, read without a guest, must agree on every page.

use std::path::Path;

use crate::support::{self, TestHost};
use wrenn::{
    CompactionPolicy, Error, Host, MiB, PausedSandbox, Prefetch, RestoreMode, RestoreOptions, Sandbox,
};
use wrenn_storage::{LayerDir, MemoryImage};

const BLOCKS: usize = 16;
const PAGES: usize = 64;
const WORDS: usize = 512;
/// The word of a page that a patch changes.
const PATCHED: usize = 100;

/// Holds blocks of 64 pages. Told a seed and a number of steps on a FIFO, it takes the steps and answers on another: the
/// checksum of each page before, and checksums, addresses and frame numbers as they are then. A step is the model's.
const GUEST: &str = r#"
import array, os, struct, sys, zlib
BLOCKS, PAGES, WORDS, PATCHED = 16, 64, 512, 100
new = lambda: array.array('Q', bytes(PAGES * WORDS * 8))
blocks = [new() for _ in range(BLOCKS)]
def step(rng):
    block, page, kind = next(rng) % BLOCKS, next(rng) % PAGES, next(rng) % 16
    stamp = next(rng) << 31 | next(rng) | 1
    words = slice(page * WORDS, (page + 1) * WORDS)
    if kind < 6: blocks[block][words] = array.array('Q', [stamp]) * WORDS
    elif kind < 10: blocks[block][words] = array.array('Q', [0]) * WORDS
    elif kind < 12: blocks[block][words] = blocks[block][words]
    elif kind < 15: blocks[block][page * WORDS + PATCHED] = stamp
    else: blocks[block] = new()
def numbers(seed):
    while True:
        seed = (seed * 6364136223846793005 + 1442695040888963407) & 0xffffffffffffffff
        yield seed >> 33
def sums():
    return ' '.join(str(zlib.crc32(b[p * WORDS:(p + 1) * WORDS])) for b in blocks for p in range(PAGES))
def frames(pagemap, block):
    address, _ = block.buffer_info()
    first, last = address // 4096, (address + PAGES * WORDS * 8 - 1) // 4096
    pagemap.seek(first * 8)
    found = struct.unpack(f'{last - first + 1}Q', pagemap.read((last - first + 1) * 8))
    return f'{address % 4096} ' + ' '.join(str(e & (1 << 55) - 1 if e >> 63 else 0) for e in found)
while True:
    with open('/run/ask') as ask: name, seed, steps = ask.read().split()
    before, rng = sums(), numbers(int(seed))
    for _ in range(int(steps)): step(rng)
    with open('/proc/self/pagemap', 'rb') as pagemap, open('/run/answer', 'w') as out:
        print(name, before, sums(), *(frames(pagemap, b) for b in blocks), sep='\n', file=out)
"#;

/// What a page holds: one word throughout, and another in one place.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Page {
    word: u64,
    patch: u64,
}

impl Page {
    fn bytes(self) -> Vec<u8> {
        let word = |index| if index == PATCHED { self.patch } else { self.word };
        (0..WORDS).flat_map(|index| u64::to_le_bytes(word(index))).collect()
    }
}

/// The numbers that guest and model draw.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
}

#[derive(Debug, Clone)]
struct Model {
    blocks: Vec<Vec<Page>>,
}

impl Model {
    fn new() -> Self {
        Self { blocks: vec![vec![Page::default(); PAGES]; BLOCKS] }
    }

    fn step(&mut self, numbers: &mut Numbers) {
        let (block, page) = (numbers.next() as usize % BLOCKS, numbers.next() as usize % PAGES);
        let kind = numbers.next() % 16;
        let stamp = numbers.next() << 31 | numbers.next() | 1;
        match kind {
            0..6 => self.blocks[block][page] = Page { word: stamp, patch: stamp },
            6..10 => self.blocks[block][page] = Page::default(),
            10..12 => {}
            12..15 => self.blocks[block][page].patch = stamp,
            _ => self.blocks[block] = vec![Page::default(); PAGES],
        }
    }

    fn check_sums(&self, sums: &str, when: &str) {
        let mut sums = sums.split(' ').map(|sum| sum.parse::<u32>().expect("a checksum"));
        for (number, page) in self.blocks.iter().flatten().enumerate() {
            let sum = crc32fast::hash(&page.bytes());
            assert_eq!(sums.next(), Some(sum), "page {number} {when} is not {page:x?}");
        }
        assert_eq!(sums.next(), None);
    }

    /// Compares the pages with those of an image, found by the guest's frame numbers.
    fn check_image(&self, image: &MemoryImage, frames: &[String]) {
        let reader = image.reader();
        for (number, (block, line)) in self.blocks.iter().zip(frames).enumerate() {
            let mut words = line.split(' ').map(|word| word.parse::<u64>().expect("a number"));
            let start = words.next().expect("where the block begins in its page") as usize;
            let mut memory = Vec::new();
            for frame in words {
                let mut page = vec![0; 4096];
                // A page that the guest has not touched yet has no frame.
                if frame != 0 {
                    reader.read(frame * 4096, &mut page).expect("the page can be read");
                }
                memory.extend(page);
            }
            let expected: Vec<u8> = block.iter().flat_map(|page| page.bytes()).collect();
            let differs = memory[start..].iter().zip(&expected).position(|(found, wanted)| found != wanted);
            assert_eq!(differs, None, "block {number} of the image differs at that byte");
        }
    }
}

/// A running guest's answer: what it had, what it has now, and where.
struct Answer {
    before: String,
    after: String,
    frames: Vec<String>,
}

async fn ask(sandbox: &Sandbox, name: &str, seed: u64, steps: usize) -> Result<Answer, Error> {
    let line = format!("echo {name} {seed} {steps} > /run/ask; exec cat /run/answer");
    let output = sandbox.exec(line).await?;
    assert!(output.status.success(), "no answer to {name}");
    let text = output.stdout_text();
    let mut lines = text.lines().map(str::to_owned);
    assert_eq!(lines.next().as_deref(), Some(name));
    let (before, after) = (lines.next().expect("checksums"), lines.next().expect("checksums"));
    Ok(Answer { before, after, frames: lines.collect() })
}

async fn boot(host: &Host, vcpus: u8) -> Sandbox {
    let sandbox = host.sandbox("debian").unwrap().vcpus(vcpus).memory(MiB(128)).create().await;
    let sandbox = sandbox.expect("the sandbox boots");
    sandbox.files().write("/root/oracle.py", GUEST).await.unwrap();
    // The kernel must leave pages where they are between a look at their frames and the pause.
    let ready = sandbox.exec("mkfifo /run/ask /run/answer && echo 0 > /proc/sys/vm/compaction_proactiveness");
    assert!(ready.await.unwrap().status.success());
    let program = sandbox.command("python3").arg("/root/oracle.py").env("MALLOC_MMAP_THRESHOLD_", "131072");
    drop(program.spawn().await.unwrap());
    sandbox
}

fn image_of(data: &Path, paused: &PausedSandbox) -> MemoryImage {
    let dir = data.join("sandboxes").join(paused.id().as_str());
    let layers = LayerDir::open(dir.join("layers")).unwrap();
    let snapshot = dir.join("snapshots").join(paused.snapshot().generation.to_string());
    MemoryImage::open(&snapshot.join("memory.manifest"), &layers).unwrap()
}

/// How many steps a guest takes in one generation.
const STEPS: usize = 100;

async fn generations(vcpus: u8, count: u64, max_layers: usize) {
    let test = TestHost::new();
    let policy = CompactionPolicy { max_layers, ..CompactionPolicy::default() };
    let host = test.builder().compaction(policy).open().await.unwrap();
    let mut model = Model::new();
    let mut sandbox = boot(&host, vcpus).await;
    for generation in 1..=count {
        let (paused, frames) =
            one_generation(sandbox, &mut model, 1000 * u64::from(vcpus), generation).await.unwrap();
        model.check_image(&image_of(&test.data(), &paused), &frames);
        // Otherwise it goes on while the guest runs, and the next pause breaks it off or finds it done.
        let mut layers = 0;
        if generation % 6 == 0 {
            paused.compacted().await;
            let image = image_of(&test.data(), &paused);
            image.verify().unwrap();
            layers = image.usage().unwrap().layers;
            assert!(layers <= max_layers, "{layers} layers after {generation} generations");
            model.check_image(&image, &frames);
        }
        let options = RestoreOptions {
            mode: if layers == 1 { RestoreMode::File } else { RestoreMode::Uffd },
            prefetch: match generation % 3 {
                0 => Prefetch::WorkingSet,
                1 => Prefetch::None,
                _ => Prefetch::All,
            },
            ..RestoreOptions::default()
        };
        sandbox = support::resume(paused, options).await;
    }
    drop(sandbox);
    host.close().await.unwrap();
}

/// The guest takes its steps, and the model too; then the guest is paused.
async fn one_generation(
    sandbox: Sandbox,
    model: &mut Model,
    seeds: u64,
    generation: u64,
) -> Result<(PausedSandbox, Vec<String>), Error> {
    let seed = seeds + generation;
    let answer = ask(&sandbox, &format!("g{generation}"), seed, STEPS).await?;
    model.check_sums(&answer.before, &format!("before generation {generation}"));
    let mut numbers = Numbers(seed);
    (0..STEPS).for_each(|_| model.step(&mut numbers));
    model.check_sums(&answer.after, &format!("in generation {generation}"));
    if generation % 10 == 5 {
        check_branch(&sandbox, model).await?;
    }
    let paused = sandbox.pause().await.map_err(|e| e.source)?;
    Ok((paused, answer.frames))
}

/// A child of the running guest has the same memory, and goes its own way.
async fn check_branch(parent: &Sandbox, model: &Model) -> Result<(), Error> {
    let child = parent.branch(1).await?.remove(0);
    let answer = ask(&child, "child", 7, 50).await?;
    model.check_sums(&answer.before, "in a branch");
    let mut own = model.clone();
    let mut numbers = Numbers(7);
    (0..50).for_each(|_| own.step(&mut numbers));
    own.check_sums(&answer.after, "in a branch that went on");
    child.destroy().await?;
    let answer = ask(parent, "parent", 0, 0).await?;
    model.check_sums(&answer.before, "in the parent of a branch");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_generations_agree_with_the_model_with_one_vcpu() {
    generations(1, 10, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_generations_agree_with_the_model_with_two_vcpus() {
    generations(2, 20, 6).await;
}
