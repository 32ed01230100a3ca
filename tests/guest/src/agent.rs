//! Owns the conversation with the agent in a guest: scripts out, results back, many at a time.
//!
//! The protocol is in `scripts/init.sh`. Every request has a time limit on both sides: the guest ends
//! the script, and the host gives up a little later, when the guest does not answer at all.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::process::tail;

/// What a script left: its exit status and its two outputs.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit status; 124 and 137 when the time limit ended it.
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
    waiting: HashMap<u64, Sender<Output>>,
    last_id: u64,
}

/// The connection to a guest's agent.
pub struct Agent {
    stream: UnixStream,
    shared: Arc<Mutex<Shared>>,
}

/// A script that runs in the guest.
pub struct Job {
    result: Receiver<Output>,
    limit: Duration,
}

impl Job {
    /// Waits for the script's end.
    pub fn wait(self) -> Result<Output> {
        // The guest enforces the limit itself; more than this and it is stuck.
        let patience = self.limit + Duration::from_secs(30);
        self.result.recv_timeout(patience).context("the guest does not answer")
    }

    /// Whether the script still runs after waiting this long.
    pub fn runs_after(&self, wait: Duration) -> Option<Output> {
        self.result.recv_timeout(wait).ok()
    }
}

impl Agent {
    /// Takes over the agent's port; `ready` says when the guest has started.
    pub fn new(stream: UnixStream) -> Result<(Agent, Receiver<()>)> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (ready_sender, ready) = mpsc::channel();
        let reader = BufReader::new(stream.try_clone()?);
        let theirs = Arc::clone(&shared);
        // Ends when the guest does: the socket closes, and all waiting jobs fail.
        thread::spawn(move || {
            let _ = read_replies(reader, &theirs, &ready_sender);
            lock(&theirs).waiting.clear();
        });
        Ok((Agent { stream, shared }, ready))
    }

    /// Starts a bash script that may take as long as `limit`.
    pub fn start(&self, script: &str, limit: Duration) -> Result<Job> {
        let (sender, result) = mpsc::channel();
        let mut shared = lock(&self.shared);
        shared.last_id += 1;
        let id = shared.last_id;
        shared.waiting.insert(id, sender);
        let script = BASE64_STANDARD.encode(script);
        let line = format!("{id} {} {script}\n", limit.as_secs().max(1));
        // Written under the lock, so that requests do not mix.
        (&self.stream).write_all(line.as_bytes()).context("send to the guest")?;
        drop(shared);
        Ok(Job { result, limit })
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_replies(
    mut reader: BufReader<UnixStream>,
    shared: &Mutex<Shared>,
    ready: &Sender<()>,
) -> Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim() == "lab ready" {
            let _ = ready.send(());
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let [id, status, out_bytes, err_bytes] = words[..] else {
            bail!("the agent said {line:?}");
        };
        let mut text = |bytes: &str| -> Result<String> {
            let mut buffer = vec![0; bytes.parse()?];
            reader.read_exact(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer).into_owned())
        };
        let (stdout, stderr) = (text(out_bytes)?, text(err_bytes)?);
        let output = Output { status: status.parse()?, stdout, stderr };
        if let Some(sender) = lock(shared).waiting.remove(&id.parse()?) {
            let _ = sender.send(output);
        }
    }
}
