//! One program that is the application, the monitor of its sandboxes, and their pager: nothing to install beside it.

use std::process::ExitCode;

use wrenn::{Host, MiB};

fn main() -> ExitCode {
    if let Some(ended) = wrenn::monitor_main() {
        return ended;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run() -> Result<(), wrenn::Error> {
    let host = Host::builder()
        .monitor_program(wrenn::embedded_monitor())
        .pager_program(wrenn::embedded_pager())
        .open()
        .await?;
    let sandbox = host.sandbox("debian")?.memory(MiB(128)).create().await?;
    println!("{}", sandbox.exec("echo one binary is enough").await?.stdout_text());
    sandbox.destroy().await?;
    host.close().await
}
