//! The ten-line program: a sandbox, a file, a command, a pause and a resume.

use wrenn::{Host, MiB};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let host = Host::builder().open().await?;
    let sandbox = host.sandbox("debian")?.vcpus(1).memory(MiB(256)).create().await?;
    sandbox.files().write("/root/hello.py", "print('hello from a microVM')").await?;
    println!("{}", sandbox.exec("python3 /root/hello.py").await?.stdout_text());
    let sandbox = sandbox.pause().await?.resume().await?;
    println!("still there: {}", sandbox.exec("cat /root/hello.py").await?.stdout_text());
    sandbox.destroy().await?;
    Ok(host.close().await?)
}
