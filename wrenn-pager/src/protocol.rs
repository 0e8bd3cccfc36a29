//! What program and pager say to each other: one line of JSON each way.
//!
//! Both are of one build as a rule, and of two where a program was replaced while its sandboxes ran on. So fields may be
//! added, with defaults, and never change their meaning.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wrenn_base::SandboxId;
use wrenn_uffd::FaultStats;

/// The most bytes of a message: paths, and numbers.
const LONGEST: u64 = 64 << 10;

/// Where the files of a memory image are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFiles {
    /// The manifest of the memory image.
    pub manifest: PathBuf,
    /// The directory of its layers.
    pub layers: PathBuf,
    /// The pages that a restore needs first: read if it is there, and written anew if a restore touched others.
    pub working_set: PathBuf,
}

/// What is paged in without being asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefetch {
    /// The working set, where it is known.
    #[default]
    WorkingSet,
    /// Nothing.
    None,
    /// Everything.
    All,
}

/// How memory is paged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagingOptions {
    /// Whether pages that are only read are shared with other sandboxes on the same image.
    pub share: bool,
    /// What is paged in ahead.
    pub prefetch: Prefetch,
    /// How many bytes are paged in ahead at most.
    pub prefetch_limit: u64,
}

/// How the service of a sandbox stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagingStatus {
    /// What was served so far.
    pub stats: FaultStats,
    /// Why the sandbox was ended by the pager, if it was.
    pub failure: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Go on as long as this connection is open.
    Keep,
    /// Open a sandbox's image and begin to read what it will need first.
    Begin {
        sandbox: SandboxId,
        image: ImageFiles,
        options: PagingOptions,
    },
    /// Serve the process that connects to `socket`; with `cached`, from a page cache that it maps.
    Serve {
        sandbox: SandboxId,
        socket: PathBuf,
        cached: bool,
    },
    /// The sandbox has answered its first command: what it touched until now is its working set.
    Answered {
        sandbox: SandboxId,
    },
    Status {
        sandbox: SandboxId,
    },
    /// Stop serving, and forget the sandbox. One that is not known is fine.
    End {
        sandbox: SandboxId,
    },
    /// The sandboxes that are known.
    List,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Done,
    Status(Option<Box<PagingStatus>>),
    Sandboxes(Vec<SandboxId>),
    Failed { why: String },
}

/// Sends one message.
pub(crate) fn send(mut stream: impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Receives one message; nothing where the other side has closed the connection.
pub(crate) fn receive<T: DeserializeOwned>(stream: impl Read) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LONGEST)).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(serde_json::from_slice(&line)?)),
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_lines() {
        let mut sent = Vec::new();
        send(&mut sent, &Request::End { sandbox: "abcdef0123456789".parse().unwrap() }).unwrap();
        assert_eq!(sent, b"{\"end\":{\"sandbox\":\"abcdef0123456789\"}}\n");
        assert!(matches!(receive(&sent[..]).unwrap(), Some(Request::End { .. })));
        assert!(receive::<Request>(&sent[..sent.len() - 1]).is_err(), "half a message is none");
        assert!(receive::<Request>(&[][..]).unwrap().is_none());
        assert!(receive::<Request>(&b"{}\n"[..]).is_err());
        let endless = io::repeat(b' ');
        assert!(receive::<Request>(endless).is_err(), "a message is bounded");
    }
}
