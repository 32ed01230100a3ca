//! Owns a corebay process on this machine: started, killed, restarted, ended; gone when dropped.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::endpoint::{Endpoint, Medium, NQN, Namespace, PORT};
use crate::process::{self, Process};

/// The port for discovery.
pub const DISCOVERY_PORT: u16 = 8009;
const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A corebay target.
pub struct Corebay {
    program: PathBuf,
    arguments: Vec<String>,
    endpoint: Endpoint,
    folder: TempDir,
    process: Option<Process>,
}

impl Corebay {
    /// Starts `program` with these namespaces, on as many addresses, and waits until it serves.
    pub fn start(
        program: &Path,
        addresses: Vec<Ipv4Addr>,
        cores: &str,
        namespaces: &[Namespace],
    ) -> Result<Corebay> {
        let folder = TempDir::with_prefix("corebay-data-")?;
        let data = folder.path().join("data");
        let endpoint = Endpoint {
            addresses,
            discovery_port: DISCOVERY_PORT,
            namespaces: namespaces.to_vec(),
        };
        let is_array = |namespace: &Namespace| namespace.medium == Medium::Array;
        let arguments = match namespaces.iter().any(is_array) {
            true => with_arrays(&data, &endpoint, cores)?,
            false => arguments(&data, &endpoint, cores),
        };
        let mut corebay = Corebay {
            program: program.to_owned(),
            arguments,
            endpoint,
            folder,
            process: None,
        };
        corebay.launch()?;
        Ok(corebay)
    }

    /// Starts the process, which must not run, and waits until it serves.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "corebay runs already");
        let log = self.folder.path().join("log");
        let _ = fs::remove_file(&log);
        let mut process = Process::start(&self.program, &self.arguments, &log)?;
        let start = Instant::now();
        loop {
            process.check_running()?;
            let said_ready = process.output().lines().any(|line| line.contains("ready"));
            if said_ready
                && self
                    .endpoint
                    .addresses
                    .iter()
                    .all(|&address| accepts(address, PORT))
            {
                break;
            }
            if start.elapsed() > START_LIMIT {
                bail!(
                    "corebay is not ready: {}",
                    process::tail(&process.output(), 20)
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.process = Some(process);
        Ok(())
    }

    /// Kills the process at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Asks the process to end; it must drain, close and end with success.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("corebay does not run")?;
        let status = process.terminate(STOP_LIMIT)?;
        ensure!(
            status.success(),
            "corebay ended with {status} after SIGTERM: {}",
            process.output()
        );
        Ok(())
    }

    /// Fails if the process ended by itself.
    pub fn check(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), Process::check_running)
    }

    /// What it must export, and where.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Asks it for something by its command line, as in `volume list`; its answer.
    pub fn ask(&self, line: &str) -> Result<Value> {
        let control = self.folder.path().join("data/corebay.sock");
        let output = Command::new(&self.program)
            .args(line.split_whitespace())
            .arg("--control")
            .arg(control)
            .args(["-o", "json"])
            .output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "corebay {line}: {complaint}");
        serde_json::from_slice(&output.stdout).with_context(|| format!("corebay {line}"))
    }

    /// How many connections of hosts it has open.
    pub fn open_connections(&self) -> Result<usize> {
        open_connections(&self.endpoint)
    }

    /// What it wrote since it was launched.
    pub fn output(&self) -> String {
        self.process
            .as_ref()
            .map(Process::output)
            .unwrap_or_default()
    }

    /// The process id while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }
}

/// How many connections the endpoint's listeners have open now, from the kernel's table.
fn open_connections(endpoint: &Endpoint) -> Result<usize> {
    const ESTABLISHED: &str = "01";
    let table = fs::read_to_string("/proc/net/tcp")?;
    // The table has addresses as the processor's words in hex.
    let locals: Vec<String> = endpoint
        .addresses
        .iter()
        .map(|address| format!("{:08X}:{PORT:04X}", u32::from_le_bytes(address.octets())))
        .collect();
    let rows = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let open = |row: &Vec<&str>| {
        row.len() > 3 && row[3] == ESTABLISHED && locals.iter().any(|local| local == row[1])
    };
    Ok(rows.filter(open).count())
}

/// The command line of `corebay serve` for this endpoint.
fn arguments(data: &Path, endpoint: &Endpoint, cores: &str) -> Vec<String> {
    let mut arguments = vec!["serve".to_owned()];
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    add("--data-dir", data.display().to_string());
    add("--nqn", NQN.to_owned());
    add("--cores", cores.to_owned());
    for address in &endpoint.addresses {
        add("--listen", format!("{address}:{PORT}"));
    }
    add(
        "--discovery",
        format!("{}:{DISCOVERY_PORT}", endpoint.address()),
    );
    for namespace in &endpoint.namespaces {
        let Namespace {
            nsid,
            medium,
            mib,
            block,
        } = namespace;
        add(
            "--disk",
            match medium {
                Medium::Memory => format!("ram:{mib}MiB,block={block}"),
                Medium::Array => unreachable!("options make no arrays"),
                Medium::File => {
                    let file = data.with_file_name(format!("disk{nsid}.img"));
                    format!("file:{},size={mib}MiB,block={block}", file.display())
                }
            },
        );
    }
    arguments
}

/// The members of an array in a configuration that [`with_arrays`] writes, then two blank disks.
pub const ARRAY_DISKS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The command line for an endpoint of arrays, and the configuration that it names.
fn with_arrays(data: &Path, endpoint: &Endpoint, cores: &str) -> Result<Vec<String>> {
    let mut toml = format!(
        "data_dir = \"{}\"\n[reactor]\ncores = [{cores}]\n",
        data.display()
    );
    let mut listen = |address: Ipv4Addr, port: u16, subsystems: bool| {
        toml +=
            &format!("[[listener]]\naddress = \"{address}:{port}\"\nsubsystems = {subsystems}\n");
    };
    for &address in &endpoint.addresses {
        listen(address, PORT, true);
    }
    listen(endpoint.address(), DISCOVERY_PORT, false);
    toml += &format!("[[subsystem]]\nnqn = \"{NQN}\"\nallow_any_host = true\n");
    for Namespace { nsid, mib, .. } in &endpoint.namespaces {
        toml += &format!("[[subsystem.namespace]]\nnsid = {nsid}\ndisk = \"array-{nsid}\"\n");
        let names = ARRAY_DISKS.map(|disk| format!("{disk}{nsid}"));
        toml += &format!(
            "[[array]]\nname = \"array-{nsid}\"\nlevel = \"raid5\"\nmembers = {:?}\n\
             create = true\nrebuild_floor = \"4MiB\"\nrebuild_ceiling = \"16MiB\"\n\
             member_timeout = \"60s\"\n",
            &names[..3]
        );
        for name in names {
            toml += &format!(
                "[[disk]]\nname = \"{name}\"\nfile = {{ path = \"{name}.img\", size = \
                 \"{mib}MiB\", create = true }}\n"
            );
        }
    }
    let file = data.with_file_name("corebay.toml");
    fs::write(&file, toml)?;
    let config = file.display().to_string();
    Ok(vec!["serve".to_owned(), "--config".to_owned(), config])
}

fn accepts(address: Ipv4Addr, port: u16) -> bool {
    let socket = SocketAddr::from((address, port));
    TcpStream::connect_timeout(&socket, Duration::from_millis(500)).is_ok()
}
