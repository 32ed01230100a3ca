//! Owns the conversation with the agent in a guest: scripts out, results back, many at a time.
//!
//! The protocol is in `scripts/init.sh`: scripts and outputs are files of the folder that host and
//! guest share, the port carries only which job starts, ends or is to be killed.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::process::tail;

/// Time that a guest has to answer that a job was killed.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// What a script left: its exit status and its two outputs.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit status; 137 when the time limit ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output without white space around it, if the script succeeded.
    pub fn success(self) -> Result<String> {
        if self.status != 0 {
            bail!("status {}: {}", self.status, tail(self.said().trim(), 30));
        }
        Ok(self.stdout.trim().to_owned())
    }

    /// Both outputs, for a message.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

#[derive(Default)]
struct Shared {
    waiting: HashMap<u64, Sender<i32>>,
    last_id: u64,
}

/// The connection to a guest's agent.
pub struct Agent {
    port: UnixStream,
    shared: Arc<Mutex<Shared>>,
    jobs: PathBuf,
}

/// A script that runs in the guest.
pub struct Job {
    agent: Arc<Agent>,
    id: u64,
    end: Receiver<i32>,
    deadline: Instant,
}

impl Job {
    /// Waits for the script's end; at its time limit it is killed.
    pub fn wait(self) -> Result<Output> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match self.end.recv_timeout(left) {
            Ok(status) => self.output(status),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest is gone"),
            Err(RecvTimeoutError::Timeout) => {
                self.agent.send(&format!("kill {}", self.id))?;
                let status = self.end.recv_timeout(KILL_LIMIT);
                let status = status.ok().context("the guest does not answer")?;
                let mut output = self.output(status)?;
                output.stderr += "\nkilled at its time limit";
                Ok(output)
            }
        }
    }

    /// The output if the script ends within this time.
    pub fn ends_within(&self, wait: Duration) -> Result<Option<Output>> {
        match self.end.recv_timeout(wait) {
            Ok(status) => Ok(Some(self.output(status)?)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("the guest is gone"),
        }
    }

    fn output(&self, status: i32) -> Result<Output> {
        let folder = self.agent.jobs.join(self.id.to_string());
        let text = |name: &str| -> Result<String> {
            Ok(String::from_utf8_lossy(&fs::read(folder.join(name))?).into_owned())
        };
        let output = Output {
            status,
            stdout: text("out")?,
            stderr: text("err")?,
        };
        let _ = fs::remove_dir_all(&folder);
        Ok(output)
    }
}

impl Agent {
    /// Takes over the agent's port; `ready` says when the guest has started.
    pub fn new(port: UnixStream, jobs: PathBuf) -> Result<(Arc<Agent>, Receiver<()>)> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (ready_sender, ready) = mpsc::channel();
        let reader = BufReader::new(port.try_clone()?);
        let theirs = Arc::clone(&shared);
        // Ends when the guest does: the socket closes, and all waiting jobs fail.
        thread::spawn(move || {
            read_replies(reader, &theirs, &ready_sender);
            lock(&theirs).waiting.clear();
        });
        Ok((Arc::new(Agent { port, shared, jobs }), ready))
    }

    /// Starts a bash script that may take as long as `limit`.
    pub fn start(self: &Arc<Agent>, script: &str, limit: Duration) -> Result<Job> {
        let (sender, end) = mpsc::channel();
        let id = {
            let mut shared = lock(&self.shared);
            shared.last_id += 1;
            let id = shared.last_id;
            shared.waiting.insert(id, sender);
            id
        };
        let folder = self.jobs.join(id.to_string());
        fs::create_dir(&folder)?;
        fs::write(folder.join("script"), script)?;
        self.send(&format!("run {id}"))?;
        Ok(Job {
            agent: Arc::clone(self),
            id,
            end,
            deadline: Instant::now() + limit,
        })
    }

    fn send(&self, line: &str) -> Result<()> {
        // One write for the whole line: requests do not mix.
        (&self.port)
            .write_all(format!("{line}\n").as_bytes())
            .context("the guest is gone")
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_replies(reader: BufReader<UnixStream>, shared: &Mutex<Shared>, ready: &Sender<()>) {
    for line in reader.lines() {
        let Ok(line) = line else { return };
        if line == "lab ready" {
            let _ = ready.send(());
        }
        let Some((id, status)) = line.split_once(' ') else {
            continue;
        };
        let (Ok(id), Ok(status)) = (id.parse(), status.parse()) else {
            continue;
        };
        if let Some(sender) = lock(shared).waiting.remove(&id) {
            let _ = sender.send(status);
        }
    }
}
