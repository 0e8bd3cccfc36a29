//! What may be found of the sandboxes, as the program writes it down before each thing that it does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use wrenn::SandboxId;

/// Where the program writes down what may become of its sandboxes.
const EXPECTED: &str = "expected";
/// Where it writes down what each snapshot is to hold.
const VALUES: &str = "values";

/// splitmix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

/// What a sandbox may be found as.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Found {
    Running { value: String },
    Paused { generation: u64, value: String },
    Gone,
}

impl Found {
    fn to_text(&self) -> String {
        match self {
            Self::Running { value } => format!("running:{value}"),
            Self::Paused { generation, value } => format!("paused:{generation}:{value}"),
            Self::Gone => "gone".to_owned(),
        }
    }

    fn from_text(text: &str) -> Self {
        match text.split(':').collect::<Vec<_>>().as_slice() {
            ["running", value] => Self::Running { value: (*value).to_owned() },
            ["paused", generation, value] => {
                Self::Paused { generation: generation.parse().unwrap(), value: (*value).to_owned() }
            }
            ["gone"] => Self::Gone,
            other => panic!("{other:?} is nothing to be found"),
        }
    }
}

/// What is written down: what each sandbox may be found as, and how many there may be that were just being made.
#[derive(Debug, Default)]
pub(super) struct Expected {
    pub(super) sandboxes: BTreeMap<SandboxId, BTreeSet<Found>>,
    pub(super) new: usize,
}

impl Expected {
    pub(super) fn save(&self, data: &Path) {
        let mut text = format!("{}\n", self.new);
        for (id, found) in &self.sandboxes {
            let found: Vec<_> = found.iter().map(Found::to_text).collect();
            text += &format!("{id} {}\n", found.join(" "));
        }
        let path = data.join(EXPECTED);
        std::fs::write(path.with_extension("new"), text).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }

    pub(super) fn load(data: &Path) -> Self {
        let text = std::fs::read_to_string(data.join(EXPECTED)).unwrap();
        let mut lines = text.lines();
        let new = lines.next().unwrap().parse().unwrap();
        let sandbox = |line: &str| {
            let mut words = line.split(' ');
            (words.next().unwrap().parse().unwrap(), words.map(Found::from_text).collect())
        };
        Self { sandboxes: lines.map(sandbox).collect(), new }
    }
}

/// Begins with nothing.
pub(super) fn begin(data: &Path) {
    Expected::default().save(data);
    std::fs::write(data.join(VALUES), "").unwrap();
}

/// Writes down what a snapshot is to hold, before it is taken.
pub(super) fn remember(data: &Path, id: &SandboxId, generation: u64, value: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(data.join(VALUES)).unwrap();
    file.write_all(format!("{id} {generation} {value}\n").as_bytes()).unwrap();
}

/// What a snapshot holds: what was written down for it last.
pub(super) fn recall(data: &Path, id: &SandboxId, generation: u64) -> String {
    let text = std::fs::read_to_string(data.join(VALUES)).unwrap();
    let begin = format!("{id} {generation} ");
    text.lines().rev().find_map(|line| line.strip_prefix(&begin)).expect("it was written down").to_owned()
}
