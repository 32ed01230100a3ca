//! Owns a `corebay serve` process under measurement: started on free ports over a null disk, asked
//! what it costs, ended when dropped.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use corebay_nvme::spec::nqn::Nqn;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use tempfile::TempDir;

/// How long it may take to start, and to end.
const LIMIT: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(20);
const NQN: &str = "nqn.2026-01.bench.corebay:appliance";

/// The program to measure.
#[derive(clap::Args)]
pub struct Program {
    /// The corebay program; without it the one built beside this program.
    #[arg(long)]
    corebay: Option<PathBuf>,
    /// The cpu that it polls on.
    #[arg(long, default_value_t = 0)]
    pub server_cpu: usize,
    /// The cpu of the hosts.
    #[arg(long, default_value_t = 1)]
    pub host_cpu: usize,
}

/// A running appliance.
pub struct Appliance {
    child: Child,
    /// Where it serves.
    pub address: SocketAddr,
    /// What it serves.
    pub nqn: Nqn,
    _folder: TempDir,
}

/// Resident memory in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Resident {
    /// Memory that is the process's alone.
    pub anonymous: u64,
    /// Shared memory: the buffers.
    pub shared: u64,
}

impl Appliance {
    /// Starts it with one null disk and waits until it serves.
    pub fn start(program: &Program) -> Result<Self> {
        let path = match &program.corebay {
            Some(path) => path.clone(),
            None => std::env::current_exe()?.with_file_name("corebay"),
        };
        ensure!(
            path.is_file(),
            "{} is no program: `cargo xtask bench` builds it",
            path.display()
        );
        let folder = TempDir::with_prefix("corebay-bench-")?;
        let (address, discovery) = free_ports()?;
        let child = Command::new(&path)
            .arg("serve")
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .args(["--nqn", NQN, "--disk", "null:1TiB"])
            .args(["--cores", &program.server_cpu.to_string()])
            .args(["--listen", &address.to_string()])
            .args(["--discovery", &discovery.to_string()])
            .env("COREBAY_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", path.display()))?;
        let mut appliance = Self {
            child,
            address,
            nqn: NQN.parse().ok().context("an NQN")?,
            _folder: folder,
        };
        appliance.until_serving()?;
        Ok(appliance)
    }

    fn until_serving(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("corebay ended with {status}");
            }
            ensure!(Instant::now() < deadline, "corebay does not serve");
            std::thread::sleep(STEP);
        }
        Ok(())
    }

    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.child.id().to_string())
            .join(name)
    }

    /// The processor time that all its threads have taken so far.
    pub fn processor_time(&self) -> Result<Duration> {
        let mut nanos = 0;
        for thread in fs::read_dir(self.proc("task"))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            let on_cpu = text.split_whitespace().next().context("schedstat")?;
            nanos += on_cpu.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Its resident memory.
    pub fn resident(&self) -> Result<Resident> {
        let status = fs::read_to_string(self.proc("status"))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next());
            Ok(kib.context("a line of /proc/PID/status")?.parse()?)
        };
        Ok(Resident {
            anonymous: field("RssAnon:")?,
            shared: field("RssShmem:")?,
        })
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let asked = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let asked = asked.map(|pid| rustix::process::kill_process(pid, Signal::TERM));
        let deadline = Instant::now() + LIMIT;
        if let Some(Ok(())) = asked {
            while let Ok(None) = self.child.try_wait() {
                if Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(STEP);
            }
        }
        // Where it has ended, this finds nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two ports that nobody listens on at this moment.
fn free_ports() -> Result<(SocketAddr, SocketAddr)> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (one, two) = (TcpListener::bind(any)?, TcpListener::bind(any)?);
    Ok((one.local_addr()?, two.local_addr()?))
}

/// Lets this process and its children open as many files as it may.
pub fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Where it is refused, connecting will say so.
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
}
