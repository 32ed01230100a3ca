//! One reactor on the calling thread, for tools that ask a controller a few questions; and what its
//! errors mean to a person.

use std::{cell::RefCell, future::Future, io, net::SocketAddr, path::Path, rc::Rc, time::Duration};

use corebay_core::{
    arena::{Arena, Hugepages},
    buffer::BufferPool,
    net::os::OsNetwork,
    reactor::{self, MachineClock, Reactor},
    units::CoreId,
};
use corebay_nvme::{
    fabrics::{ControllerOptions, Digests, DiscoveryRecord, Error, Host, HostIdentity, discover},
    spec::{
        log::{subtype, trtype},
        nqn::Nqn,
        status::Status,
    },
};
use uuid::Uuid;

use super::failure::Failure;

/// How long the thread polls before it sleeps.
const IDLE_SLEEP: Duration = Duration::from_micros(200);

/// The tasks of a tool: its own, and those of its controllers.
const TASKS: usize = 32;

/// The memory of a tool's buffers.
const ARENA_BYTES: usize = 2 << 20;

/// As whom, and how, a tool connects.
#[derive(Clone, Debug, clap::Args)]
pub struct HostArgs {
    /// The host's NQN [default: /etc/nvme/hostnqn, else one made from the host identifier]
    #[arg(long, value_name = "NQN")]
    host_nqn: Option<Nqn>,
    /// The host identifier, a UUID [default: /etc/nvme/hostid, else a new one]
    #[arg(long, value_name = "UUID")]
    host_id: Option<Uuid>,
    /// Ask for CRC32C digests of PDU headers
    #[arg(long)]
    header_digest: bool,
    /// Ask for CRC32C digests of PDU data
    #[arg(long)]
    data_digest: bool,
}

impl HostArgs {
    /// As whom to connect. What is neither given nor configured on the machine is made up.
    ///
    /// # Errors
    /// Where what the machine has configured cannot be understood.
    pub fn identity(&self) -> Result<HostIdentity, Failure> {
        let id = match self.host_id {
            Some(id) => id,
            None => {
                configured::<Uuid>("/etc/nvme/hostid", "--host-id")?.unwrap_or_else(Uuid::new_v4)
            }
        };
        let nqn = match &self.host_nqn {
            Some(nqn) => nqn.clone(),
            None => match configured::<Nqn>("/etc/nvme/hostnqn", "--host-nqn")? {
                Some(nqn) => nqn,
                None => format!("nqn.2014-08.org.nvmexpress:uuid:{id}")
                    .parse()
                    .expect("a UUID makes an NQN"),
            },
        };
        Ok(HostIdentity {
            nqn,
            id: id.into_bytes(),
        })
    }

    /// The digests to ask for.
    pub fn digests(&self) -> Digests {
        Digests {
            header: self.header_digest,
            data: self.data_digest,
        }
    }
}

/// What a file of the machine's NVMe configuration says, if it is there.
fn configured<T: std::str::FromStr>(path: &str, option: &str) -> Result<Option<T>, Failure>
where
    T::Err: std::fmt::Display,
{
    let Ok(text) = std::fs::read_to_string(Path::new(path)) else {
        return Ok(None);
    };
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| {
        let message = format!("`{text}` in {path} is not understood: {error}");
        Failure::new(message, format!("mend the file, or give {option}"))
    })
}

/// Runs `task` on a reactor of this thread's own, to its end.
///
/// # Errors
/// The task's failure, or that the machine does not give what a reactor needs.
pub fn run<T: 'static, F>(
    task: impl FnOnce(Rc<Host<OsNetwork>>) -> F + 'static,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>> + 'static,
{
    let clock = MachineClock::new();
    let reactor = Reactor::new(CoreId(0), TASKS, clock.now());
    let network = OsNetwork::new()
        .map_err(|error| Failure::new(format!("cannot use the network: {error}"), ""))?;
    let mut arena = Arena::new(ARENA_BYTES, Hugepages::Off)
        .map_err(|error| Failure::new(error.to_string(), ""))?;
    let region = arena.take(ARENA_BYTES).expect("the arena was just made");
    let host = Host::new(&reactor, network, BufferPool::new(region, TASKS));
    let outcome = Rc::new(RefCell::new(None));
    let (into, stop) = (outcome.clone(), reactor.clone());
    let work = async move {
        let result = task(host).await;
        *into.borrow_mut() = Some(result);
        stop.stop();
    };
    // The future of a tool may be larger than a slot, and there is only one.
    if reactor.spawn(Box::pin(work)).is_err() {
        unreachable!("the reactor's first task has a slot");
    }
    reactor::run(&reactor, clock, Some(IDLE_SLEEP));
    reactor.tear_down();
    outcome
        .take()
        .expect("the reactor stops once the task has ended")
}

/// The one subsystem that the discovery service at `address` offers over TCP, and where it is.
///
/// # Errors
/// Where discovery fails, or offers none or several.
pub async fn only_subsystem(
    host: &Rc<Host<OsNetwork>>,
    address: SocketAddr,
    identity: &HostIdentity,
) -> Result<(Nqn, SocketAddr), Failure> {
    let log = discover(
        host,
        ControllerOptions::discovery(address, identity.clone()),
    )
    .await
    .map_err(|error| {
        let asked = explain("find out what is offered", address, &error);
        Failure::new(asked.to_string(), "or name the subsystem with --nqn NQN")
    })?;
    let offered: Vec<&DiscoveryRecord> = log
        .records
        .iter()
        .filter(|record| record.entry.trtype == trtype::TCP && record.entry.subtype == subtype::NVM)
        .collect();
    let mut names: Vec<&str> = offered.iter().map(|record| &*record.subnqn).collect();
    names.sort_unstable();
    names.dedup();
    let name = match names[..] {
        [name] => name,
        [] => {
            let message = format!("{address} offers no subsystem over TCP to {}", identity.nqn);
            let help = "let the target export one, and allow this host; \
                        `corebay discover` shows what is offered";
            return Err(Failure::new(message, help));
        }
        _ => {
            let list = names.join("\n    ");
            let message = format!("{address} offers several subsystems:\n    {list}");
            return Err(Failure::new(message, "choose one with --nqn NQN"));
        }
    };
    let nqn = name.parse().map_err(|error| {
        let message = format!("{address} offers a subsystem of the name `{name}`: {error}");
        Failure::new(message, "name the subsystem with --nqn NQN")
    })?;
    let places = offered.iter().filter_map(|record| place(record, address));
    let places: Vec<SocketAddr> = places.collect();
    let at = match places.contains(&address) {
        true => address,
        false => places.first().copied().unwrap_or(address),
    };
    Ok((nqn, at))
}

/// Where a record says its subsystem is; the asked address where it names every address.
fn place(record: &DiscoveryRecord, asked: SocketAddr) -> Option<SocketAddr> {
    let port = record.trsvcid.parse().ok()?;
    let ip: std::net::IpAddr = record.traddr.parse().ok()?;
    let ip = if ip.is_unspecified() { asked.ip() } else { ip };
    Some(SocketAddr::new(ip, port))
}

/// What an error of the host means, and how to mend it.
pub fn explain(what: &str, address: SocketAddr, error: &Error) -> Failure {
    let message = format!("cannot {what} at {address}: {error}");
    let help = match error {
        Error::Transport(io::ErrorKind::ConnectionRefused) => {
            "nothing listens there: start the target (`corebay serve`), or mend the address"
        }
        Error::Transport(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable)
        | Error::TimedOut => "see that the address is right, and that no firewall is in between",
        Error::Transport(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            "see that it is an NVMe/TCP target that listens there, and what it logs"
        }
        Error::Refused { status, .. } if status.same_as(Status::CONNECT_INVALID_HOST) => {
            "the subsystem does not allow this host: add its NQN there, or connect as another with \
             --host-nqn"
        }
        Error::Refused { status, .. } if status.same_as(Status::CONNECT_INVALID_PARAMETERS) => {
            "see that the subsystem's name is right: `corebay discover` lists them"
        }
        _ => "",
    };
    Failure::new(message, help)
}
