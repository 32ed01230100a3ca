//! A client of a running appliance's control socket, and the options that all its commands share.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use corebay_conf::TimeSpan;
use serde_json::{Value, json};

use super::{Failure, Format};

/// How long an answer may take beyond the deadline that the appliance was told.
const ANSWER_MARGIN: Duration = Duration::from_secs(10);

/// Where appliances have their control socket.
const SOCKETS: [&str; 2] = [
    "./corebay-data/corebay.sock",
    "/var/lib/corebay/corebay.sock",
];

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
        let stream = paths.iter().find_map(|path| UnixStream::connect(path).ok());
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
        let limited = stream.set_read_timeout(Some(timeout + ANSWER_MARGIN));
        limited.map_err(|error| Failure::new(error.to_string(), ""))?;
        Ok(Self {
            stream: BufReader::new(stream),
            timeout,
        })
    }

    /// Asks for something, and waits for the answer.
    ///
    /// # Errors
    /// What the appliance refuses, and where it does not answer.
    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value, Failure> {
        let lost = |error: std::io::Error| {
            Failure::new(
                format!("the appliance does not answer: {error}"),
                "look at its log",
            )
        };
        let mut params = params.clone();
        params["timeout"] = json!(self.timeout.as_secs());
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let stream = self.stream.get_mut();
        stream
            .write_all(format!("{request}\n").as_bytes())
            .map_err(lost)?;
        let mut line = String::new();
        self.stream.read_line(&mut line).map_err(lost)?;
        let answer: Value = serde_json::from_str(&line)
            .map_err(|_| Failure::new("the appliance closed the connection", "look at its log"))?;
        match Failure::answered(&answer["error"]) {
            Some(failure) => Err(failure),
            None => Ok(answer["result"].clone()),
        }
    }
}

/// A value in a cell of a table.
pub fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
