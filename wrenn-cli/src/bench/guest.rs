//! What the benchmark has its guests do, and what it asks the machine.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use wrenn_core::{Host, MiB, PausedSandbox, RestoreOptions, RestoreTimings, Sandbox, Template};

/// Guests may fill this part of the memory that the machine has free.
const SHARE_OF_FREE: u64 = 2;

/// The sizes for which the machine has room, smallest first.
pub(super) fn that_fit(sizes: &[u32]) -> Result<Vec<MiB>, Box<dyn Error>> {
    let free = meminfo("MemAvailable")? >> 10;
    let mut fit: Vec<MiB> =
        sizes.iter().copied().filter(|size| u64::from(*size) <= free / SHARE_OF_FREE).map(MiB).collect();
    fit.sort();
    match fit.is_empty() {
        true => Err(format!("{free} MiB of free memory are too little for any of the sizes").into()),
        false => Ok(fit),
    }
}

/// A line of `/proc/meminfo`, in KiB.
fn meminfo(name: &str) -> Result<u64, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line
        .and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok())
        .ok_or("meminfo is not understood")?)
}

/// The proportional share of memory of a process (`Pss` of `smaps_rollup`), in KiB.
pub(super) fn pss(pid: i32) -> Result<u64, Box<dyn Error>> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    Ok(line
        .and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok())
        .ok_or("smaps_rollup has no Pss")?)
}

/// Runs a line in the guest, which must succeed.
pub(super) async fn run(sandbox: &Sandbox, line: &str) -> Result<String, Box<dyn Error>> {
    let output = sandbox.exec(line).await?;
    match output.status.success() {
        true => Ok(output.stdout_text()),
        false => Err(format!("in the guest: {line}: {}", output.stderr_text()).into()),
    }
}

/// Boots a guest that holds `fill` MiB of random data in memory.
pub(super) async fn boot(
    host: &Host,
    image: &str,
    memory: MiB,
    fill: u32,
) -> Result<Sandbox, Box<dyn Error>> {
    eprintln!("wrenn: booting a guest with {memory} of memory, {fill} MiB of them filled");
    let limit = Duration::from_secs(300);
    let sandbox = host.sandbox(image)?.memory(memory).ready_timeout(limit).create().await?;
    // From a few random MiB, over and over with changes: random enough for no page to equal another, and quick.
    let program = format!(
        "import os\nseed = os.urandom(1 << 20)\nwith open('/run/fill', 'wb') as out:\n \
         for n in range({fill}): out.write(n.to_bytes(4096, 'little') + seed[:-4096])"
    );
    sandbox.files().write("/root/fill.py", program).await?;
    run(&sandbox, "python3 /root/fill.py").await?;
    Ok(sandbox)
}

/// Has the guest write `size` MiB of its memory anew.
pub(super) async fn dirty(sandbox: &Sandbox, size: u32) -> Result<(), Box<dyn Error>> {
    run(sandbox, &format!("head -c {size}M /dev/urandom > /run/dirty")).await.map(drop)
}

/// What one resume took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resumed {
    pub(super) timings: RestoreTimings,
    /// From the call until a command was answered.
    pub(super) first_exec: Duration,
    pub(super) faults: u64,
}

/// Makes one sandbox of a template and has it answer a command.
pub(super) async fn spawn_one(
    template: &Template,
    options: RestoreOptions,
) -> Result<(Sandbox, Resumed), Box<dyn Error>> {
    let begun = Instant::now();
    let sandbox = template.builder().restore(options).spawn(1).await?.remove(0);
    run(&sandbox, "true").await?;
    let first_exec = begun.elapsed();
    let timings = sandbox.restore_timings().ok_or("a restored sandbox has timings")?;
    let faults = sandbox.fault_stats().await.map_or(0, |stats| stats.faults);
    Ok((sandbox, Resumed { timings, first_exec, faults }))
}

/// Pauses, keeping the error readable.
pub(super) async fn pause(sandbox: Sandbox) -> Result<PausedSandbox, Box<dyn Error>> {
    Ok(sandbox.pause().await.map_err(|e| e.source)?)
}

pub(super) async fn resume(paused: PausedSandbox) -> Result<Sandbox, Box<dyn Error>> {
    Ok(paused.resume().await.map_err(|e| e.source)?)
}
