//! The parts of `corebay volume` that take long: streams, images, limits; and the progress of such work.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use corebay_conf::Size;
use serde_json::{Value, json};

use super::{
    Failure, Format,
    client::{Asking, Client, word},
    volume::{Exported, full_name, show, size},
};

/// How often progress is asked for.
const LOOK: Duration = Duration::from_millis(500);

/// What goes in and out of volumes.
#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Send a snapshot, or what has changed since another one, as a stream
    Send {
        /// The snapshot
        #[arg(value_name = "VOLUME@SNAPSHOT")]
        snapshot: String,
        /// Only what has changed since this snapshot
        #[arg(long, value_name = "VOLUME@SNAPSHOT")]
        from: Option<String>,
        /// The block that an interrupted stream goes on from
        #[arg(long, default_value_t = 0)]
        start: u64,
        /// The file that the stream goes to [default: standard output]
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Receive a stream into a volume, which is made where the stream is a whole snapshot
    Receive {
        /// The volume
        volume: String,
        /// What the snapshot is called here, after the @ [default: as where it came from]
        #[arg(long)]
        snapshot: Option<String>,
        /// The file that the stream comes from [default: standard input]
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Give up a stream that was cut off
        #[arg(long, conflicts_with_all = ["snapshot", "file"])]
        abort: bool,
    },
    /// Write a snapshot, or a volume that no host may write, to a raw image; zeroes become holes
    Export {
        /// The snapshot or volume
        volume: String,
        /// The image's file, which is there once it is whole
        file: PathBuf,
    },
    /// Make a volume of a raw image; holes take no space
    Import {
        /// The new volume
        volume: String,
        /// The image: a file or a device
        file: PathBuf,
        #[command(flatten)]
        export: Exported,
    },
}

/// What hosts may do in a second; 0 is no limit.
#[derive(Debug, clap::Args)]
pub struct LimitArgs {
    /// Read commands a second, and how many at once after a pause
    #[arg(long, value_name = "COUNT[:BURST]")]
    read_iops: Option<Limit<u64>>,
    /// Write commands a second
    #[arg(long, value_name = "COUNT[:BURST]")]
    write_iops: Option<Limit<u64>>,
    /// Bytes read a second
    #[arg(long, value_name = "SIZE[:BURST]")]
    read_rate: Option<Limit<Size>>,
    /// Bytes written a second
    #[arg(long, value_name = "SIZE[:BURST]")]
    write_rate: Option<Limit<Size>>,
}

impl LimitArgs {
    /// As the control socket takes it.
    pub fn params(&self) -> Value {
        let rate =
            |per_second: u64, burst: u64| json!({ "per_second": per_second, "burst": burst });
        let count = |limit: &Option<Limit<u64>>| limit.map(|l| rate(l.per_second, l.burst));
        let bytes = |limit: &Option<Limit<Size>>| {
            limit.map(|limit| rate(limit.per_second.bytes(), limit.burst.bytes()))
        };
        json!({
            "read_operations": count(&self.read_iops),
            "write_operations": count(&self.write_iops),
            "read_bytes": bytes(&self.read_rate),
            "write_bytes": bytes(&self.write_rate),
        })
    }
}

/// A rate and its burst, which is as much as in a second where nothing is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit<T> {
    per_second: T,
    burst: T,
}

impl<T: FromStr + Copy> FromStr for Limit<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rate, burst) = text.split_once(':').unwrap_or((text, text));
        let number = |text: &str| {
            text.parse::<T>()
                .map_err(|_| format!("`{text}` is no number"))
        };
        Ok(Self {
            per_second: number(rate)?,
            burst: number(burst)?,
        })
    }
}

/// Does what is asked, and shows how far it is.
pub fn act(action: &Action, asking: &Asking) -> Result<(), Failure> {
    let (method, params) = request(action)?;
    let mut client = Client::connect_for_work(asking)?;
    let progress = Progress::start(asking);
    let result = client.call(&format!("volume.{method}"), &params);
    drop(progress);
    let result = result?;
    let text = match (asking.output, action) {
        (Format::Json, _) => format!("{result:#}\n"),
        (_, Action::Send { .. }) => format!(
            "sent {}: {} in a stream of {}\n",
            full_name(&result),
            size(&result["data_bytes"]),
            size(&result["stream_bytes"])
        ),
        (_, Action::Receive { abort: true, .. }) => {
            format!("{} is {}\n", full_name(&result), word(&result["state"]))
        }
        _ => show(&result),
    };
    match action {
        // Standard output is the stream's.
        Action::Send { to: None, .. } => eprint!("{text}"),
        _ => print!("{text}"),
    }
    Ok(())
}

fn request(action: &Action) -> Result<(&'static str, Value), Failure> {
    Ok(match action {
        Action::Send {
            snapshot,
            from,
            start,
            to,
        } => {
            if to.is_none() && std::io::stdout().is_terminal() {
                return Err(Failure::new(
                    "a stream is nothing for a terminal",
                    "say --to FILE, or send it on: ... | ssh HOST corebay volume receive NAME",
                ));
            }
            let path = path_of(to.as_deref(), 1)?;
            (
                "send",
                json!({ "snapshot": snapshot, "from": from, "start": start, "path": path }),
            )
        }
        Action::Receive {
            volume,
            abort: true,
            ..
        } => ("abort_receive", json!({ "volume": volume })),
        Action::Receive {
            volume,
            snapshot,
            file,
            ..
        } => {
            let path = path_of(file.as_deref(), 0)?;
            (
                "receive",
                json!({ "volume": volume, "snapshot": snapshot, "path": path }),
            )
        }
        Action::Export { volume, file } => {
            let path = path_of(Some(file), 0)?;
            ("export", json!({ "volume": volume, "path": path }))
        }
        Action::Import {
            volume,
            file,
            export,
        } => {
            let path = path_of(Some(file), 0)?;
            (
                "import",
                json!({ "volume": volume, "path": path, "export": export.params() }),
            )
        }
    })
}

/// The path by which the appliance, on the same machine, finds a file, or what this process has as a
/// standard stream.
fn path_of(path: Option<&Path>, descriptor: u32) -> Result<String, Failure> {
    let path = match path {
        None => return Ok(format!("/proc/{}/fd/{descriptor}", std::process::id())),
        Some(path) => std::path::absolute(path),
    };
    let path = path.map_err(|error| Failure::new(error.to_string(), ""))?;
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Failure::new("the path is no text", "rename the file"))
}

/// Shows on a terminal how far long work is, until it is dropped.
pub struct Progress {
    /// True once it is; held while something is shown.
    ended: Arc<Mutex<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows it from now on.
    #[allow(
        clippy::disallowed_methods,
        reason = "the command line waits by the machine's clock, on a thread of its own"
    )]
    pub fn start(asking: &Asking) -> Self {
        let ended = Arc::new(Mutex::new(false));
        let (asking, until) = (asking.clone(), ended.clone());
        let show = move || {
            let Ok(mut client) = Client::connect(&asking) else {
                return;
            };
            loop {
                std::thread::park_timeout(LOOK);
                let work = client.call("work.list", &json!({}));
                let ended = until.lock().unwrap_or_else(PoisonError::into_inner);
                if *ended {
                    return;
                }
                if let Ok(work) = work {
                    eprint!("\r{}\x1b[K", line(&work));
                    let _ = std::io::stderr().flush();
                }
            }
        };
        let wanted = std::io::stderr().is_terminal();
        Self {
            ended,
            thread: wanted.then(|| std::thread::spawn(show)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        // It may be waiting for an answer: nobody waits for that with it.
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            eprint!("\r\x1b[K");
        }
    }
}

fn line(work: &Value) -> String {
    let each = work.as_array().into_iter().flatten().map(|work| {
        format!(
            "{} {}: {} of {}",
            word(&work["what"]),
            full_name(work),
            size(&work["done_bytes"]),
            size(&work["total_bytes"])
        )
    });
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_a_burst() {
        let limit = |text: &str| text.parse::<Limit<u64>>();
        let same = |per_second, burst| Ok(Limit { per_second, burst });
        assert_eq!(limit("100"), same(100, 100));
        assert_eq!(limit("100:500"), same(100, 500));
        assert_eq!(limit("0"), same(0, 0));
        assert!(limit("a").is_err());
        let bytes: Limit<Size> = "10MiB:1GiB".parse().unwrap();
        assert_eq!(bytes.burst, Size::GIB);
    }
}
