//! A client of a running appliance's control socket, and the options that all its commands share.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use corebay_conf::TimeSpan;
use corebay_core::{reactor::MachineClock, units::Time};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use serde_json::{Value, json};

use super::{Failure, Format};

/// How long is waited, once the time is over that the appliance was told, for its saying so.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);

/// Where appliances have their control socket.
const SOCKETS: [&str; 2] = [
    "./corebay-data/corebay.sock",
    "/var/lib/corebay/corebay.sock",
];

/// Whether commands find this socket where none is named.
pub fn is_looked_for(control: &Path) -> bool {
    let place = |path: &Path| std::path::absolute(path).ok();
    SOCKETS
        .iter()
        .any(|known| place(Path::new(known)) == place(control))
}

/// What every command to a running appliance takes.
#[derive(Clone, Debug, clap::Args)]
pub struct Asking {
    /// The appliance's control socket [default: corebay.sock in ./corebay-data or /var/lib/corebay]
    #[arg(long, value_name = "PATH", global = true)]
    pub control: Option<PathBuf>,
    /// How results and errors are printed; an error in JSON is one line on standard error, with its code
    #[arg(short, long, value_enum, default_value_t, global = true)]
    pub output: Format,
    /// How long the appliance may take; what it began by then it still ends [default: 60s; 24h for streams,
    /// images, inflating and checks]
    #[arg(long, value_name = "TIME", global = true, value_parser = deadline)]
    pub timeout: Option<Duration>,
}

/// How long is waited where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The same for what takes as long as there is to copy or to look at.
const TIMEOUT_OF_WORK: Duration = Duration::from_secs(86_400);

fn deadline(text: &str) -> Result<Duration, String> {
    let time: TimeSpan = text.parse().map_err(|error| format!("{error}"))?;
    let time = time.duration();
    let most = Duration::from_secs(86_400);
    match (Duration::from_secs(1)..=most).contains(&time) {
        true => Ok(time),
        false => Err("expected 1s to 24h".to_owned()),
    }
}

/// A connection to an appliance.
pub struct Client {
    stream: BufReader<UnixStream>,
    timeout: Duration,
    clock: MachineClock,
    /// The time of the first question is counted from here.
    began: Option<Time>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Where no appliance answers.
    pub fn connect(asking: &Asking) -> Result<Self, Failure> {
        Self::connect_for(asking, TIMEOUT)
    }

    /// Connects for what may take long.
    ///
    /// # Errors
    /// As `connect`.
    pub fn connect_for_work(asking: &Asking) -> Result<Self, Failure> {
        Self::connect_for(asking, TIMEOUT_OF_WORK)
    }

    fn connect_for(asking: &Asking, timeout: Duration) -> Result<Self, Failure> {
        let timeout = asking.timeout.unwrap_or(timeout);
        let paths = match &asking.control {
            Some(path) => vec![path.clone()],
            None => SOCKETS.iter().map(PathBuf::from).collect(),
        };
        let clock = MachineClock::new();
        let began = Some(clock.now());
        let stream = paths.iter().find_map(|path| reach(path, timeout).ok());
        let stream = stream.ok_or_else(|| {
            let paths: Vec<_> = paths
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            Failure::new(
                format!("no appliance answers at {}", paths.join(" or ")),
                "start it (`corebay serve`), or name its socket with --control",
            )
        })?;
        Ok(Self {
            stream: BufReader::new(stream),
            timeout,
            clock,
            began,
        })
    }

    /// Asks for something, and waits for the answer.
    ///
    /// # Errors
    /// What the appliance refuses, and where it does not answer.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value, Failure> {
        let began = self.began.take().unwrap_or_else(|| self.clock.now());
        let until = began.plus(self.timeout + ANSWER_MARGIN);
        let mut params = params.clone();
        params["timeout"] = json!(self.timeout.as_secs());
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let line = self.exchange(&request, until);
        let line = line.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Failure::new(
                format!(
                    "the appliance does not answer within {}s",
                    self.timeout.as_secs()
                ),
                "see whether it is stopped, and look at its log; what was asked for may still be done",
            ),
            _ => Failure::new(
                format!("the appliance does not answer: {error}"),
                "look at its log",
            ),
        })?;
        let answer: Value = serde_json::from_str(&line)
            .map_err(|_| Failure::new("the appliance closed the connection", "look at its log"))?;
        match Failure::answered(&answer["error"]) {
            Some(failure) => Err(failure),
            None => Ok(answer["result"].clone()),
        }
    }

    /// Sends a line, and gives the one that comes back.
    fn exchange(&mut self, request: &Value, until: Time) -> io::Result<String> {
        let left = |clock: &MachineClock| {
            let left = until.since(clock.now());
            match left.is_zero() {
                true => Err(io::Error::from(ErrorKind::TimedOut)),
                false => Ok(Some(left)),
            }
        };
        let stream = self.stream.get_mut();
        stream.set_write_timeout(left(&self.clock)?)?;
        match stream.write_all(format!("{request}\n").as_bytes()) {
            // Who has no time for it says so without reading what was asked.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            sent => sent?,
        }
        let mut line = Vec::new();
        // However it is cut into pieces.
        while !line.ends_with(b"\n") {
            let wait = left(&self.clock)?;
            self.stream.get_ref().set_read_timeout(wait)?;
            let piece = match self.stream.fill_buf() {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                piece => piece?,
            };
            let end = piece.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(piece.len(), |at| at + 1);
            if taken == 0 {
                break;
            }
            line.extend_from_slice(&piece[..taken]);
            self.stream.consume(taken);
        }
        String::from_utf8(line).map_err(|_| ErrorKind::InvalidData.into())
    }
}

/// Connects to a socket: one whose owner accepts nothing keeps nobody waiting for longer.
fn reach(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// A value in a cell of a table.
pub fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
