//! From the call of a resume to the first answered command, in each way of bringing memory back.
//!
//! `cargo bench --bench restore`, as root; where the machine's own KVM cannot run guests, with `WRENN_LAB=always`. It takes
//! images from `$WRENN_DATA`, as the `wrenn` command does. Compare within one run. `wrenn bench restore` measures more.

use std::cell::RefCell;
use std::process::ExitCode;
use std::sync::OnceLock;

use divan::Bencher;
use tokio::runtime::Runtime;
use wrenn::{Host, MiB, Prefetch, RestoreMode, RestoreOptions, Sandbox, Template};

const TEMPLATE: &str = "wrenn-cargo-bench";

fn main() -> ExitCode {
    // `cargo bench` builds no other program, so this one is the pager too.
    if let Some(ended) = wrenn::monitor_main() {
        return ended;
    }
    divan::main();
    let world = world();
    world.runtime.block_on(async { world.template.delete().await }).expect("the template can be removed");
    ExitCode::SUCCESS
}

/// What all benchmarks share: one host, and one template of a guest that was just booted.
struct World {
    runtime: Runtime,
    template: Template,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let template = runtime.block_on(async {
            let host = Host::builder().pager_program(wrenn::embedded_pager()).open().await;
            let host = host.expect("the host opens");
            let template = host.template(TEMPLATE).expect("a name");
            // What a run that was interrupted left.
            let _ = template.delete().await;
            let sandbox = host.sandbox("debian").expect("a name").memory(MiB(256)).create().await;
            let paused = sandbox.expect("the guest boots").pause().await.map_err(|e| e.source);
            let paused = paused.expect("the guest is paused");
            paused.to_template(TEMPLATE).await.expect("a template");
            paused.destroy().await.expect("the sandbox can be removed");
            template
        });
        let world = World { runtime, template };
        // The first resume learns the working set.
        end(&world, resume(&world, RestoreOptions::default()));
        std::thread::sleep(std::time::Duration::from_secs(1));
        world
    })
}

fn resume(world: &World, options: RestoreOptions) -> Sandbox {
    world.runtime.block_on(async {
        let sandbox = world.template.builder().restore(options).spawn(1).await.expect("a sandbox").remove(0);
        assert!(sandbox.exec("true").await.expect("the guest answers").status.success());
        sandbox
    })
}

fn end(world: &World, sandbox: Sandbox) {
    world.runtime.block_on(sandbox.destroy()).expect("the sandbox can be removed");
}

fn bench(bencher: Bencher<'_, '_>, mode: RestoreMode, prefetch: Prefetch) {
    let world = world();
    let mut options = RestoreOptions::default();
    (options.mode, options.prefetch) = (mode, prefetch);
    // The sandbox of one round is removed before the next, outside of what is measured.
    let last = RefCell::new(None::<Sandbox>);
    let end_last = || {
        if let Some(sandbox) = last.take() {
            end(world, sandbox);
        }
    };
    bencher.with_inputs(end_last).bench_local_values(|()| {
        last.replace(Some(resume(world, options)));
    });
    end_last();
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn uffd_cold(bencher: Bencher<'_, '_>) {
    bench(bencher, RestoreMode::Uffd, Prefetch::None);
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn uffd_working_set(bencher: Bencher<'_, '_>) {
    bench(bencher, RestoreMode::Uffd, Prefetch::WorkingSet);
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn file(bencher: Bencher<'_, '_>) {
    bench(bencher, RestoreMode::File, Prefetch::None);
}
