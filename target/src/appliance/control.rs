//! The control socket: JSON-RPC 2.0 over a Unix socket, one message a line. See `docs/adr/0010`.
//!
//! Invariants:
//! - Connections and messages are bounded; who sends or takes nothing for a while is disconnected.
//! - It runs on threads of its own and asks the main thread: never a core, never the data path.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use corebay_core::{reactor::MachineClock, units::Time};
use rustix::{fs::Mode, process::umask};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{keeper::Event, run::spawn};
use crate::cli::Failure;

/// Connections at a time: scripts give many orders at once, and each stream keeps one for as long as it takes.
const CONNECTIONS_MAX: usize = 256;

/// How long a client that is refused may take to take that.
const REFUSAL_MAX: Duration = Duration::from_millis(100);

/// The longest message.
const MESSAGE_BYTES_MAX: u64 = 64 << 10;

/// How long a client may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long an answer may take where the client does not say it (`timeout`, in seconds).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest that a client may say.
const ANSWER_TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

/// A mistake of JSON-RPC, by its code, or ours.
#[derive(Clone, Debug)]
pub struct RpcError {
    /// Its code.
    pub code: i32,
    /// What is wrong.
    pub message: String,
}

impl RpcError {
    /// The parameters are wrong.
    pub fn params(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code: -32602,
            message,
        }
    }

    /// What was asked for was refused.
    pub fn refused(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code: -32000,
            message,
        }
    }

    /// It is there already, and is not what was asked for.
    pub fn conflict(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code: -32003,
            message,
        }
    }

    /// It is not there.
    pub fn missing(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code: -32004,
            message,
        }
    }

    /// No space is left for it.
    pub fn full(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code: -32005,
            message,
        }
    }

    /// A disk could not be opened.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code: -32006,
            message,
        }
    }

    /// Others have all connections.
    fn busy() -> Self {
        Self {
            code: -32007,
            message: format!(
                "{CONNECTIONS_MAX} commands are under way, as many as it takes at once"
            ),
        }
    }

    /// True where a disk could not be opened.
    pub fn is_unavailable(&self) -> bool {
        self.code == -32006
    }

    /// The time that it was given has passed before it began.
    pub fn too_late() -> Self {
        Self::refused("others took all the time that it had: nothing was changed")
    }

    /// What kind of mistake it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self.code {
            -32602 => "parameters",
            -32001 => "no answer",
            -32002 => "goes on",
            -32003 => "conflict",
            -32004 => "missing",
            -32005 => "full",
            -32006 => "unavailable",
            -32007 => "busy",
            code if code <= -32600 => "protocol",
            _ => "refused",
        }
    }

    fn of(code: i32, message: &str) -> Self {
        Self {
            code,
            message: message.to_owned(),
        }
    }
}

/// What is answered.
pub enum Reply {
    /// At once.
    Now(Result<Value, RpcError>),
    /// When the order was accepted or refused.
    Order(mpsc::Receiver<Result<(), String>>),
    /// When it is done.
    Later(mpsc::Receiver<Result<Value, RpcError>>),
}

/// What a client asks of the main thread.
pub struct ControlRequest {
    /// The method.
    pub method: String,
    /// Its parameters: an object.
    pub params: Value,
    /// Until when it may begin: from when it came on, whenever the main thread gets to it.
    pub until: Time,
    /// Where the answer goes.
    pub answer: mpsc::Sender<Reply>,
}

/// Where requests go, and the clock of their time.
#[derive(Clone)]
struct Way {
    events: mpsc::Sender<Event>,
    clock: MachineClock,
}

/// The socket; its file goes with it.
pub struct Control(PathBuf);

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Serves the socket at `path` from now on.
///
/// # Errors
/// Where it cannot be made, or another process serves it.
pub fn start(
    path: &Path,
    events: mpsc::Sender<Event>,
    clock: MachineClock,
) -> Result<Control, Failure> {
    let way = Way { events, clock };
    let cannot = |error: io::Error| {
        let help = "name another with --control";
        Failure::new(
            format!("no control socket at {}: {error}", path.display()),
            help,
        )
    };
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket {
        if UnixStream::connect(path).is_ok() {
            return Err(cannot(io::ErrorKind::AddrInUse.into()));
        }
        // What a process that was killed left behind.
        fs::remove_file(path).map_err(cannot)?;
    }
    let before = umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = bound.map_err(cannot)?;
    info!(path = %path.display(), "control socket");
    spawn("corebay-control".into(), move || accept(&listener, &way))?;
    Ok(Control(path.to_owned()))
}

fn accept(listener: &UnixListener, way: &Way) {
    let connections = Arc::new(AtomicUsize::new(0));
    let mut is_told = false;
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        if connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            connections.fetch_sub(1, Ordering::Relaxed);
            refuse(&stream);
            if !std::mem::replace(&mut is_told, true) {
                warn!("commands are refused: {CONNECTIONS_MAX} are under way");
            }
            continue;
        }
        is_told = false;
        let (way, count) = (way.clone(), connections.clone());
        let serving = spawn("corebay-client".into(), move || {
            // A client that goes away is no error.
            let _ = serve(&stream, &way);
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(failure) = serving {
            warn!("{failure}");
            connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Says that others have all connections, to a client that has asked for nothing yet.
fn refuse(mut stream: &UnixStream) {
    let answer = error(&Value::Null, &RpcError::busy());
    // Who has gone needs no answer.
    let _ = stream.set_write_timeout(Some(REFUSAL_MAX));
    let _ = stream.write_all(format!("{answer}\n").as_bytes());
}

fn serve(stream: &UnixStream, way: &Way) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let read = (&mut reader)
            .take(MESSAGE_BYTES_MAX)
            .read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        let answer = match whole || read < MESSAGE_BYTES_MAX as usize {
            true => respond(&line, way),
            false => Some(error(
                &Value::Null,
                &RpcError::of(-32600, "the message is too long"),
            )),
        };
        if let Some(answer) = answer {
            let mut stream = stream;
            stream.write_all(format!("{answer}\n").as_bytes())?;
        }
        if !whole {
            return Ok(());
        }
    }
}

fn error(id: &Value, error: &RpcError) -> Value {
    let data = json!({ "kind": error.kind() });
    json!({
        "jsonrpc": "2.0",
        "id": id,
        "error": { "code": error.code, "message": error.message, "data": data },
    })
}

/// The answer to a message; none for a notification.
fn respond(line: &[u8], way: &Way) -> Option<Value> {
    let Ok(message) = serde_json::from_slice::<Value>(line) else {
        return Some(error(
            &Value::Null,
            &RpcError::of(-32700, "this is not JSON"),
        ));
    };
    let id = message.get("id").cloned();
    let named = message
        .get("id")
        .is_none_or(|id| id.is_string() || id.is_number() || id.is_null());
    let method = message.get("method").and_then(Value::as_str);
    let params = message.get("params").cloned().unwrap_or_else(|| json!({}));
    let outcome = match method {
        Some(method) if named && message["jsonrpc"] == "2.0" && params.is_object() => {
            ask(method, params, way)
        }
        _ => Err(RpcError::of(
            -32600,
            "this is no request of JSON-RPC 2.0 with named parameters",
        )),
    };
    match (id, outcome) {
        (None, Err(refusal)) if refusal.code == -32600 => Some(error(&Value::Null, &refusal)),
        (None, _) => None,
        (Some(id), Ok(result)) => Some(json!({ "jsonrpc": "2.0", "id": id, "result": result })),
        (Some(id), Err(refusal)) => Some(error(&id, &refusal)),
    }
}

fn ask(method: &str, params: Value, way: &Way) -> Result<Value, RpcError> {
    let late = |_| RpcError::of(-32001, "the appliance does not answer: it may be ending");
    let slow = |_| RpcError::of(-32002, "it is not done in the time given, and goes on");
    let until = way.clock.now().plus(deadline(&params)?);
    let left = || until.since(way.clock.now());
    let (answer, replies) = mpsc::channel();
    let request = ControlRequest {
        method: method.to_owned(),
        params,
        until,
        answer,
    };
    // Where nobody receives it, its answer never comes either.
    let _ = way.events.send(Event::Control(request));
    match replies.recv_timeout(left()).map_err(late)? {
        Reply::Now(outcome) => outcome,
        Reply::Order(outcome) => {
            let outcome = outcome.recv_timeout(left()).map_err(slow)?;
            outcome.map(|()| json!({})).map_err(RpcError::refused)
        }
        Reply::Later(outcome) => outcome.recv_timeout(left()).map_err(slow)?,
    }
}

/// How long the client waits.
fn deadline(params: &Value) -> Result<Duration, RpcError> {
    let seconds = match params.get("timeout") {
        None => return Ok(ANSWER_TIMEOUT),
        Some(seconds) => seconds.as_u64().map(Duration::from_secs),
    };
    let good = seconds.filter(|time| (Duration::from_secs(1)..=ANSWER_TIMEOUT_MAX).contains(time));
    good.ok_or_else(|| RpcError::params("`timeout` is a number of seconds, 1 to 86400"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_sent_is_answered_or_ignored() {
        let (events, requests) = mpsc::channel();
        drop(requests);
        let clock = MachineClock::new();
        let way = Way { events, clock };
        let code =
            |line: &str| respond(line.as_bytes(), &way).map(|said| said["error"]["code"].clone());
        assert_eq!(code("{"), Some(json!(-32700)));
        for line in [
            "[]",
            "1",
            "{}",
            r#"{"jsonrpc":"2.0","id":{},"method":"a"}"#,
            r#"{"id":1,"method":"a"}"#,
        ] {
            assert_eq!(code(line), Some(json!(-32600)), "{line}");
        }
        let line = r#"{"jsonrpc":"2.0","id":1,"method":"a","params":[1]}"#;
        assert_eq!(code(line), Some(json!(-32600)));
        assert_eq!(
            code(r#"{"jsonrpc":"2.0","id":1,"method":"a"}"#),
            Some(json!(-32001))
        );
        assert_eq!(code(r#"{"jsonrpc":"2.0","method":"a"}"#), None);
    }

    #[test]
    fn who_comes_when_all_connections_are_taken_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (events, requests) = mpsc::channel();
        drop(requests);
        let _control = start(&path, events, MachineClock::new()).unwrap();
        let connect = || UnixStream::connect(&path).unwrap();
        let answer = |stream: UnixStream| {
            // What is refused may have been closed before.
            let _ = (&stream).write_all(b"{}\n");
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            serde_json::from_str::<Value>(&line).unwrap()["error"]["data"]["kind"].clone()
        };
        let mut others: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connect()).collect();
        assert_eq!(answer(connect()), json!("busy"));
        assert_eq!(answer(connect()), json!("busy"));
        assert_eq!(answer(others.pop().unwrap()), json!("protocol"));
        // Once that one's thread has ended.
        while answer(connect()) != json!("protocol") {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_time_of_a_request_begins_when_it_comes() {
        let (events, requests) = mpsc::channel();
        let clock = MachineClock::new();
        let way = Way { events, clock };
        let before = clock.now();
        let line = r#"{"jsonrpc":"2.0","id":1,"method":"a","params":{"timeout":1000}}"#;
        let asking = spawn("client".into(), move || {
            let answer = respond(line.as_bytes(), &way).unwrap();
            let error = &answer["error"];
            assert_eq!(
                (&error["code"], &error["data"]["kind"]),
                (&json!(-32003), &json!("conflict"))
            );
        });
        let Ok(Event::Control(request)) = requests.recv() else {
            panic!("a request")
        };
        // However late the main thread is.
        let time = Duration::from_secs(1000);
        assert!(request.until >= before.plus(time) && request.until <= clock.now().plus(time));
        let answer = Reply::Now(Err(RpcError::conflict("it is there")));
        assert!(request.answer.send(answer).is_ok());
        asking.unwrap().join().unwrap();
    }
}
