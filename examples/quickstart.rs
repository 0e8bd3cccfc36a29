//! Boots a sandbox, runs a command, pauses it to disk twice and resumes it with its memory paged in on demand;
//! prints what each phase took, and the proof that nothing was lost.
//!
//! `WRENN_DATA` names the data directory, `WRENN_MONITOR` another monitor (for example `firecracker`).

use std::error::Error;
use std::time::{Duration, Instant};

use wrenn::{Bytes, Host, MiB, Sandbox};

/// Keeps a number in memory only, and writes it to a file when asked by a signal.
const COUNTER: &str = r#"
import os, signal, time
name, count = os.urandom(8).hex(), 0
def tell(*_):
    with open('/run/counter.new', 'w') as out: out.write(f'{name} {count}')
    os.rename('/run/counter.new', '/run/counter')
signal.signal(signal.SIGUSR1, tell)
tell()
while True:
    count += 1
    time.sleep(0.01)
"#;

/// What the counter said: who it is, and how far it got.
#[derive(Debug)]
struct Counter {
    name: String,
    count: u64,
}

/// One line of the report.
struct Phase {
    name: &'static str,
    took: Duration,
    note: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut phases = Vec::new();
    let mut phase = |name, since: Instant, note| phases.push(Phase { name, took: since.elapsed(), note });

    let host = Host::builder().open().await?;
    let start = Instant::now();
    let sandbox = host.sandbox("debian")?.memory(MiB(256)).create().await?;
    phase("boot to agent ready", start, format!("{} of memory, sandbox {}", sandbox.memory(), sandbox.id()));

    let start = Instant::now();
    let kernel = sandbox.exec("uname -sr").await?.stdout_text();
    phase("exec", start, format!("uname -sr: {kernel}"));

    sandbox.files().write("/root/counter.py", COUNTER).await?;
    sandbox.files().write("/root/note", "written before the first pause").await?;
    let pid = sandbox.command("python3").arg("/root/counter.py").spawn().await?.pid();
    // A signal before it listens would end it; it tells once when it does.
    sandbox.exec("until test -e /run/counter; do sleep 0.1; done").await?;
    let before = ask(&sandbox, pid).await?;

    let start = Instant::now();
    let paused = sandbox.pause().await?;
    let full = paused.snapshot().memory_written;
    phase("full pause", start, format!("{full} of memory written"));

    let start = Instant::now();
    let sandbox = paused.resume().await?;
    sandbox.exec("true").await?;
    let (faulted, note) = paged_in(&sandbox).await;
    phase("resume to first answered exec", start, note);
    let between = ask(&sandbox, pid).await?;

    let start = Instant::now();
    let paused = sandbox.pause().await?;
    let diff = paused.snapshot().memory_written;
    phase("diff pause", start, format!("{diff} of memory written"));

    let start = Instant::now();
    let sandbox = paused.resume().await?;
    sandbox.exec("true").await?;
    phase("resume again", start, paged_in(&sandbox).await.1);
    let after = ask(&sandbox, pid).await?;
    let note = sandbox.exec("cat /root/note").await?.stdout_text();
    let memory = sandbox.memory();
    sandbox.destroy().await?;
    host.close().await?;

    print_table(&phases);
    println!(
        "process {pid}, \"{}\", counted in memory: {}, {}, {}",
        before.name, before.count, between.count, after.count
    );
    println!("the file says: {note}");
    check(
        before.name == between.name && between.name == after.name,
        "the process is the same one throughout",
    )?;
    check(
        before.count < between.count && between.count < after.count,
        "it went on counting after each pause",
    )?;
    check(note == "written before the first pause", "the file is as it was written")?;
    check(diff.get() * 10 < full.get(), "the diff pause wrote less than a tenth of the full one")?;
    check(faulted.get() * 2 < memory.get(), "the resume paged in less than half of the memory")?;
    Ok(())
}

/// Has the counter say who it is and how far it got.
async fn ask(sandbox: &Sandbox, pid: u32) -> Result<Counter, Box<dyn Error>> {
    let line = format!(
        "rm -f /run/counter; kill -USR1 {pid} || exit; \
         for try in $(seq 300); do test -e /run/counter && exec cat /run/counter; sleep 0.1; done"
    );
    let answer = sandbox.exec(line).await?;
    let text = answer.stdout_text();
    let (name, count) = text.split_once(' ').ok_or_else(|| format!("no answer: {}", answer.stderr_text()))?;
    Ok(Counter { name: name.to_owned(), count: count.parse()? })
}

/// How much of the guest's memory has been paged in, as bytes and in words.
async fn paged_in(sandbox: &Sandbox) -> (Bytes, String) {
    let Some(stats) = sandbox.fault_stats().await else { return (Bytes(0), "not restored".to_owned()) };
    let total = sandbox.memory().get() / 4096;
    (Bytes(stats.pages * 4096), format!("{} faults brought {} of {total} pages", stats.faults, stats.pages))
}

fn print_table(phases: &[Phase]) {
    let width = phases.iter().map(|phase| phase.name.len()).max().unwrap_or(0);
    println!("\n{:width$} | {:>9} | what", "phase", "time");
    println!("{:-<width$}-+-----------+-{:-<50}", "", "");
    for Phase { name, took, note } in phases {
        println!("{name:width$} | {:>6} ms | {note}", took.as_millis());
    }
    println!();
}

/// Prints a promise that was kept; one that was not ends the program.
fn check(kept: bool, promise: &str) -> Result<(), Box<dyn Error>> {
    if !kept {
        return Err(format!("NOT TRUE: {promise}").into());
    }
    println!("ok: {promise}");
    Ok(())
}
