//! A `corebay serve` as its operator meets it, for tests of whole processes.
#![allow(
    dead_code,
    clippy::disallowed_methods,
    reason = "a test of whole processes waits for them by the machine's clock, and uses a part of it"
)]

use std::{
    io::{BufRead, BufReader, Read},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use corebay_nvme::spec::command::admin;
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, prlimit};

use crate::harness::{
    socket,
    wire::{Connection, Payload},
};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_corebay");
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A `corebay serve` that is ready; killed when dropped.
pub struct Serving {
    pub child: Child,
    pub said: String,
}

impl Serving {
    pub fn start(arguments: &[&str]) -> Self {
        let ports = ["--listen", "127.0.0.1:0", "--discovery", "127.0.0.1:0"];
        Self::start_as(&[&ports, arguments].concat())
    }

    pub fn start_as(arguments: &[&str]) -> Self {
        Self::start_by(Command::new(PROGRAM), arguments)
    }

    /// One whose writes to files fail beyond what they may be long, as [`limit_files`](Self::limit_files) says.
    pub fn start_limited(arguments: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        let ignoring = "trap '' XFSZ; exec \"$0\" \"$@\"";
        shell.args(["-c", ignoring, PROGRAM]);
        let ports = ["--listen", "127.0.0.1:0", "--discovery", "127.0.0.1:0"];
        Self::start_by(shell, &[&ports, arguments].concat())
    }

    /// How long files may be.
    pub fn limit_files(&self, bytes: Option<u64>) {
        let pid = Some(Pid::from_child(&self.child));
        let mut limit = getrlimit(Resource::Fsize);
        limit.current = bytes;
        prlimit(pid, Resource::Fsize, limit).unwrap();
    }

    fn start_by(mut program: Command, arguments: &[&str]) -> Self {
        let mut child = program
            .arg("serve")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        while !said.contains("\nready") {
            if lines.read_line(&mut said).unwrap() == 0 {
                let mut complaint = String::new();
                child
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut complaint)
                    .unwrap();
                panic!("it did not get ready: {said}{complaint}");
            }
        }
        Self { child, said }
    }

    /// What is said after `word`, up to white space or a comma.
    pub fn word_after(&self, word: &str) -> &str {
        let at = self
            .said
            .find(word)
            .unwrap_or_else(|| panic!("no {word:?} in {}", self.said));
        let rest = &self.said[at + word.len()..];
        rest.split([' ', ',', '\n']).next().unwrap()
    }

    pub fn port(&self) -> &str {
        self.word_after("at 127.0.0.1:")
    }

    pub fn nqn(&self) -> &str {
        self.word_after("subsystem ")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// An association's admin queue.
    pub fn admin(&self) -> Connection<TcpStream> {
        let address = format!("127.0.0.1:{}", self.port()).parse().unwrap();
        socket::admin(address, &self.nqn().parse().unwrap())
    }

    /// Numbers of the health log: reads, writes, power cycles, unsafe shutdowns.
    pub fn health(&self) -> [u64; 4] {
        let log = admin::get_log_page(2, u32::MAX, 0, 128, false);
        let page = self.admin().command(log, Payload::ToHost(512)).ok();
        [64, 80, 112, 144].map(|at| u64::from_le_bytes(page[at..at + 8].try_into().unwrap()))
    }

    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        wait(&mut self.child);
    }

    /// Ends it by SIGTERM; it must end cleanly.
    pub fn end(mut self) {
        self.signal(Signal::TERM);
        let status = wait(&mut self.child);
        assert_eq!(status, Some(0), "a clean end");
    }

    /// Lets it read its configuration again; gives what it logs of that.
    pub fn reload(&mut self) -> String {
        self.signal(Signal::HUP);
        let mut said = String::new();
        let log = self.child.stderr.as_mut().unwrap();
        let mut byte = [0];
        // Byte by byte, so that what follows is there for the next time.
        while !(said.contains("SIGHUP") && said.ends_with('\n')) {
            assert_eq!(log.read(&mut byte).unwrap(), 1, "{said}");
            said.push(char::from(byte[0]));
        }
        said
    }

    /// The active namespaces.
    pub fn namespaces(&self) -> Vec<u32> {
        let list = admin::identify(2, 0, 0);
        let page = self.admin().command(list, Payload::ToHost(4096)).ok();
        let ids = page.chunks_exact(4).map(|id| id.try_into().unwrap());
        ids.map(u32::from_le_bytes)
            .take_while(|id| *id != 0)
            .collect()
    }

    pub fn bench(&self, arguments: &[&str]) -> serde_json::Value {
        self.bench_at(&format!("127.0.0.1:{}", self.port()), arguments)
    }

    pub fn bench_at(&self, address: &str, arguments: &[&str]) -> serde_json::Value {
        let output = Command::new(PROGRAM)
            .args([
                "bench",
                "-o",
                "json",
                "--address",
                address,
                "--nqn",
                self.nqn(),
            ])
            .args(["--time", "30s"])
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
        })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wait(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it did not end");
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs `serve`, which must refuse; gives what it says.
pub fn refused(arguments: &[&str]) -> String {
    let Output { status, stderr, .. } = Command::new(PROGRAM)
        .arg("serve")
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(status.code(), Some(1));
    String::from_utf8(stderr).unwrap()
}

/// The first CPUs that this process may use, at most `count`, as a configuration lists them.
pub fn cores(count: usize) -> String {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let all = 0..rustix::thread::CpuSet::MAX_CPU;
    let first: Vec<_> = all
        .filter(|core| allowed.is_set(*core))
        .take(count)
        .collect();
    format!("{first:?}")
}

/// What a command complains of in JSON, with the help, beside what else it says on standard error.
pub fn complaint(stderr: &[u8]) -> String {
    let mut said = String::new();
    for line in String::from_utf8_lossy(stderr).lines() {
        let json: Result<serde_json::Value, _> = serde_json::from_str(line);
        match json.map(|json| json["error"].clone()) {
            Ok(error) => {
                let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
                said += &format!("{}\n{}\n", text("message"), text("help"));
            }
            Err(_) => said += &format!("{line}\n"),
        }
    }
    said
}

/// A port that nobody listens on, nor gets by chance: it lies below those that the system gives to who
/// asks for any, so that it is still free where a test starts its appliance again.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let next = || std::process::id() + GIVEN.fetch_add(1, Ordering::Relaxed);
    let ports = std::iter::repeat_with(|| 20_000 + (next() % 10_000) as u16).take(10_000);
    let mut free = ports.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.next().expect("a port of ten thousand is free")
}
