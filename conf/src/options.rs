//! The options of `corebay serve` without a file: a working appliance on loopback.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::appliance::{Appliance, BlockSize, Transport};
use crate::diagnostic::{Draft, Sink, Source, Span};
use crate::disk_spec::{DiskSpec, DiskSpecKind};
use crate::limits::{CORES_MAX, DISKS_MAX, LISTENERS_MAX};
use crate::machine::{Machine, PathState};
use crate::reader::{At, Field};
use crate::schema::{
    self, RawAccess, RawAppliance, RawDisk, RawKind, RawListener, RawNamespace, RawPool,
    RawReactor, RawSubsystem, scalars,
};
use crate::units::Size;
use crate::{Outcome, check, finish};
use corebay_nvme::spec::nqn::Nqn;

/// What the command line says in place of a file; [`Options::default`] is what it says unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `--data-dir`: the folder for data and identity.
    pub data_dir: PathBuf,
    /// `--size`: the size of a file disk that is created and says none of its own; without any disk,
    /// of the first volume.
    pub size: Size,
    /// `--listen`: where subsystems (and discovery) are served. Port 0: any free port.
    pub listen: Vec<SocketAddr>,
    /// `--discovery`: where discovery alone is served.
    pub discovery: Vec<SocketAddr>,
    /// `--cores`: CPU numbers; none: the first that the process may use.
    pub cores: Vec<u32>,
    /// `--disk`: each becomes the next NSID; none: a pool on the file `pool-1.img` in the data folder,
    /// or the file `disk-1.img` where an earlier start has left one.
    pub disks: Vec<DiskSpec>,
    /// `--nqn`: the subsystem; `None`: the name that the appliance keeps in its data folder.
    pub nqn: Option<Nqn>,
}

impl Default for Options {
    fn default() -> Options {
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Options {
            data_dir: PathBuf::from("./corebay-data"),
            size: Size::GIB.times(8),
            listen: vec![loopback(4420)],
            discovery: vec![loopback(8009)],
            cores: Vec::new(),
            disks: Vec::new(),
            nqn: None,
        }
    }
}

/// The file of an appliance that was given no disk.
const POOL_FILE: &str = "pool-1.img";

/// What such an appliance served before it made pools: where it is there, it is served as it is.
const DISK_FILE: &str = "disk-1.img";

/// The pool that such an appliance makes.
pub const DEFAULT_POOL: &str = "pool-1";

/// The pool's first volume.
pub const DEFAULT_VOLUME: &str = "volume-1";

impl Appliance {
    /// The appliance that the options of `serve` describe: one subsystem, open to every host,
    /// whose namespaces are the disks in their order.
    ///
    /// `kept_nqn` is the name that the appliance keeps in its data folder, for when the options
    /// give none. A file disk that exists has the size of its file; one that does not is created.
    ///
    /// # Errors
    /// Every mistake that could be found, as with a file; the carets point into the options.
    pub fn from_options(options: &Options, kept_nqn: &Nqn, machine: &dyn Machine) -> Outcome {
        let mut line = CommandLine::default();
        let mut raw = raw(options, kept_nqn, machine, &mut line);
        let mut sink = Sink::new(Source::new("command line", &line.text));
        bounds(options, &mut sink);
        for listener in &raw.listeners {
            usable(listener, &mut sink);
        }
        let size = match raw.pools.is_empty() {
            true => options.size,
            false => pool_size(options.size),
        };
        created_with(size, line.size, &mut raw, machine);
        let appliance = check::check(raw, machine, &mut sink);
        finish(appliance, sink)
    }
}

/// The options written out one a line, so that a diagnostic can point into them.
#[derive(Default)]
struct CommandLine {
    text: String,
    size: Option<Span>,
}

impl CommandLine {
    fn option(&mut self, name: &str, value: &dyn Display) -> Span {
        let start = self.text.len() + name.len() + 1;
        self.text.push_str(&format!("{name} {value}\n"));
        Span {
            start,
            end: self.text.len() - 1,
        }
    }

    fn at<T: Display>(&mut self, name: &str, value: T) -> At<T> {
        let span = self.option(name, &value);
        At::new(value, span)
    }
}

fn raw(
    options: &Options,
    kept_nqn: &Nqn,
    machine: &dyn Machine,
    line: &mut CommandLine,
) -> RawAppliance {
    let data_dir = line.option("--data-dir", &options.data_dir.display());
    line.size = Some(line.option("--size", &options.size));
    let mut listeners: Vec<RawListener> = options
        .listen
        .iter()
        .map(|address| listener(line.at("--listen", *address), true))
        .collect();
    // Discovery is served wherever subsystems are: to ask for it there again is no mistake.
    let only_discovery = options
        .discovery
        .iter()
        .filter(|address| !options.listen.contains(address));
    listeners
        .extend(only_discovery.map(|address| listener(line.at("--discovery", *address), false)));
    let cores = options
        .cores
        .iter()
        .map(|core| line.at("--cores", *core))
        .collect();
    let (default_disk, is_pool) = default_disk(options, machine);
    let default_disk = [default_disk];
    let pool = (options.disks.is_empty() && is_pool).then(|| {
        let first = (DEFAULT_VOLUME.to_owned(), options.size);
        RawPool::default_of(DEFAULT_POOL, "disk-1", first)
    });
    let disks = if options.disks.is_empty() {
        &default_disk[..]
    } else {
        &options.disks
    };
    let disks: Vec<RawDisk> = disks
        .iter()
        .enumerate()
        .map(|(at, spec)| disk(at, spec, line))
        .collect();
    let nqn = match &options.nqn {
        Some(nqn) => line.at("--nqn", nqn.clone()),
        None => At::default(kept_nqn.clone()),
    };
    RawAppliance {
        data_dir: At::new(options.data_dir.clone(), data_dir),
        disk_dir: PathBuf::new(),
        reactor: RawReactor {
            cores,
            ..RawReactor::default()
        },
        tcp: schema::default_tcp(),
        listeners,
        subsystems: vec![subsystem(nqn, if pool.is_some() { &[] } else { &disks })],
        disks,
        arrays: Vec::new(),
        pools: pool.into_iter().collect(),
        referrals: Vec::new(),
        log: schema::default_log(),
        any_port: true,
    }
}

/// The disk of an appliance that was given none, and whether it is for a pool.
fn default_disk(options: &Options, machine: &dyn Machine) -> (DiskSpec, bool) {
    let plain = options.data_dir.join(DISK_FILE);
    let state = machine.path(&check::disk_path(&PathBuf::new(), &plain));
    let is_pool = matches!(state, PathState::Missing | PathState::MissingFolder);
    let path = match is_pool {
        true => options.data_dir.join(POOL_FILE),
        false => plain,
    };
    let kind = DiskSpecKind::File { path, size: None };
    let spec = DiskSpec {
        kind,
        block_size: None,
    };
    (spec, is_pool)
}

/// The size of a pool's sparse file whose first volume has `size`: as much again, for snapshots and
/// further volumes, and something for its books.
fn pool_size(size: Size) -> Size {
    // What is no size of a disk is left as it was given, to be told of as such.
    if size.bytes() == 0 || !size.bytes().is_multiple_of(BlockSize::B4096.bytes() as u64) {
        return size;
    }
    let bytes = size.bytes().saturating_mul(2).saturating_add(64 << 20);
    Size::from_bytes(bytes.min(crate::limits::DISK_SIZE_MAX.bytes()))
}

fn listener(address: At<SocketAddr>, subsystems: bool) -> RawListener {
    let span = address.span.unwrap_or(Span { start: 0, end: 0 });
    RawListener {
        name: Field::Absent,
        address: Field::Given(address),
        transport: Transport::Tcp,
        discovery: true,
        subsystems: At::default(subsystems),
        span,
    }
}

fn disk(at: usize, spec: &DiskSpec, line: &mut CommandLine) -> RawDisk {
    let span = line.option("--disk", spec);
    let given = |size: Size| Field::Given(At::new(size, span));
    let path = |path: &PathBuf| Field::Given(At::new(path.clone(), span));
    let kind = match &spec.kind {
        DiskSpecKind::File { path: file, size } => RawKind::File {
            path: path(file),
            size: size.map_or(Field::Absent, given),
            create: At::default(true),
            span,
        },
        DiskSpecKind::Ram { size } => RawKind::Ram { size: given(*size) },
        DiskSpecKind::Null { size } => RawKind::Null { size: given(*size) },
        DiskSpecKind::Device { path: device } => RawKind::Device { path: path(device) },
    };
    RawDisk {
        name: Field::Given(At::new(format!("disk-{}", at + 1), span)),
        kind: Some(kind),
        block_size: spec
            .block_size
            .map_or(Field::Absent, |block| Field::Given(At::new(block, span))),
        uuid: Field::Absent,
        span,
    }
}

fn subsystem(nqn: At<Nqn>, disks: &[RawDisk]) -> RawSubsystem {
    let span = nqn.span.unwrap_or(Span { start: 0, end: 0 });
    let namespaces = disks.iter().map(|disk| RawNamespace {
        nsid: Field::Absent,
        disk: disk.name.clone(),
        volume: Field::Absent,
        uuid: Field::Absent,
        nguid: Field::Absent,
        eui64: Field::Absent,
        read_only: false,
        span: disk.span,
    });
    RawSubsystem {
        nqn: Field::Given(nqn),
        serial: Field::Absent,
        model: schema::default_model(),
        access: RawAccess {
            any_host: Field::Given(At::default(true)),
            hosts: Field::Absent,
        },
        listeners: Field::Absent,
        max_namespaces: At::default(crate::limits::NAMESPACES_MAX as u32),
        namespaces: namespaces.collect(),
        span,
    }
}

/// The lists have bounds here too; in a file they are kept while it is read.
fn bounds(options: &Options, sink: &mut Sink) {
    let listeners = options.listen.len() + options.discovery.len();
    let lists = [
        ("--listen and --discovery", listeners, LISTENERS_MAX),
        ("--disk", options.disks.len(), DISKS_MAX),
        ("--cores", options.cores.len(), CORES_MAX),
    ];
    for (name, count, count_max) in lists {
        if count > count_max {
            sink.push(Draft::error(format!(
                "{count} times {name} is too many: at most {count_max}"
            )));
        }
    }
}

fn usable(listener: &RawListener, sink: &mut Sink) {
    let Some(address) = listener.address.given() else {
        return;
    };
    if let Err(refusal) = scalars::usable(address.value) {
        sink.push(
            Draft::error(refusal.message)
                .at(address.span, "")
                .help(refusal.help),
        );
    }
    if listener.subsystems.value && !address.value.ip().is_loopback() {
        let draft = Draft::warning(format!(
            "every host that reaches {} may connect",
            address.value
        ));
        let help = "to admit only some hosts, describe the appliance in a file (`corebay serve --config FILE`) \
                    that lists them";
        sink.push(draft.at(address.span, "not a loopback address").help(help));
    }
}

/// File disks that say no size, and do not exist, are created with this one.
fn created_with(size: Size, span: Option<Span>, raw: &mut RawAppliance, machine: &dyn Machine) {
    for disk in &mut raw.disks {
        let Some(RawKind::File {
            path, size: own, ..
        }) = &mut disk.kind
        else {
            continue;
        };
        let full = path
            .value()
            .map(|path| check::disk_path(&raw.disk_dir, path));
        let state = full.map(|full| machine.path(&full));
        let is_new = matches!(
            state,
            Some(
                PathState::Missing
                    | PathState::MissingFolder
                    | PathState::File { size_bytes: 0, .. }
            )
        );
        if own.is_absent() && is_new {
            *own = Field::Given(At { value: size, span });
        }
    }
}
