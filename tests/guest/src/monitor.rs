//! Owns the conversation with QEMU's monitor (QMP): one request at a time.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

const REPLY_LIMIT: Duration = Duration::from_secs(20);

/// A connection to the monitor.
pub struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects and agrees on the protocol.
    pub fn connect(socket: &Path) -> Result<Monitor> {
        let stream = UnixStream::connect(socket).context("QEMU opens no monitor")?;
        stream.set_read_timeout(Some(REPLY_LIMIT))?;
        let stream = BufReader::new(stream);
        let mut monitor = Monitor { stream };
        monitor.execute(&json!({ "execute": "qmp_capabilities" }))?;
        Ok(monitor)
    }

    /// Sends a request and gives its result.
    pub fn execute(&mut self, request: &Value) -> Result<Value> {
        let line = format!("{request}\n");
        self.stream.get_mut().write_all(line.as_bytes())?;
        loop {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line);
            if read.context("QEMU's monitor does not answer")? == 0 {
                bail!("QEMU's monitor is gone");
            }
            let mut said: Value = serde_json::from_str(&line).context("QEMU's monitor")?;
            if let Some(error) = said.get("error") {
                bail!("QEMU refuses {request}: {error}");
            }
            // Anything else is a greeting or an event.
            if let Some(result) = said.get_mut("return") {
                return Ok(result.take());
            }
        }
    }
}
