//! Owns what an idle appliance costs: the processor time that it takes while hosts are connected and
//! keep alive, and how much later it answers the first command after a second without any.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    appliance::{Appliance, Program, raise_open_files},
    host::{
        driver::{self, read_capsule},
        handshake::{Association, Connection},
    },
    load::{C2H_BYTES, CAPSULE_BYTES},
    pin::pin,
    table::{Table, command_line, median},
};

/// Hosts send Keep Alive twice in this time, as Linux does with its default.
const KATO: Duration = Duration::from_secs(5);
/// Entries of an I/O queue.
const ENTRIES: u16 = 128;
/// Bytes of the commands whose latency is taken.
const BYTES: usize = 4096;
/// Commands whose latency under load is taken.
const WARM_COMMANDS: usize = 4000;
/// How long nothing is asked before a first command.
const QUIET: Duration = Duration::from_secs(1);

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    program: Program,
    /// Connected hosts.
    #[arg(long, default_value_t = 16)]
    hosts: u16,
    /// I/O queues of each host.
    #[arg(long, default_value_t = 4)]
    queues: u16,
    /// Seconds over which the processor time is taken.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// First commands whose latency is taken.
    #[arg(long, default_value_t = 20)]
    firsts: usize,
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<()> {
    raise_open_files();
    let appliance = Appliance::start(&arguments.program)?;
    pin(arguments.program.host_cpu);
    let mut hosts = Vec::new();
    for host in 0..arguments.hosts {
        let kato = u32::try_from(KATO.as_millis())?;
        let association = Association::open(appliance.address, &appliance.nqn, host, kato)?;
        let queues: Result<Vec<Connection>> = (1..=arguments.queues)
            .map(|qid| association.io_queue(qid, ENTRIES, false))
            .collect();
        hosts.push((association, queues?));
    }
    println!("{}\n", command_line());
    let share = processor_share(&appliance, &mut hosts, arguments.seconds)?;
    let mut table = Table::new(&["connected", "connections", "processor time"]);
    table.row(vec![
        format!("{} hosts", arguments.hosts),
        format!("{}", arguments.hosts * (arguments.queues + 1)),
        format!("{:.2} % of one core", 100.0 * share),
    ]);
    println!("{}", table.markdown());
    let queue = hosts[0].1.pop().context("no I/O queue")?;
    let ours = latencies(queue.into_stream(), arguments.firsts, &mut hosts)?;
    let sleeping = latencies(
        connect(sleeping_echo(arguments.program.server_cpu)?)?,
        arguments.firsts,
        &mut hosts,
    )?;
    let mut table = Table::new(&[
        "4 KiB read, depth 1",
        "under load us",
        "first after 1 s us",
        "difference us",
    ]);
    for (name, (warm, first)) in [("ours", ours), ("a sleeping echo", sleeping)] {
        table.row(vec![
            name.to_owned(),
            format!("{warm:.1}"),
            format!("{first:.1}"),
            format!("{:+.1}", first - warm),
        ]);
    }
    println!(
        "Medians of {WARM_COMMANDS} commands under load and of {} first ones; the host spins \
         throughout.\nThe sleeping echo is a thread that blocks in `recv`: what waking up costs on \
         this machine.\n",
        arguments.firsts
    );
    println!("{}", table.markdown());
    Ok(())
}

type Hosts = Vec<(Association, Vec<Connection>)>;

/// The part of one core that the appliance takes while its hosts only keep alive.
fn processor_share(appliance: &Appliance, hosts: &mut Hosts, seconds: u64) -> Result<f64> {
    wait(hosts, Duration::from_secs(1))?;
    let (start, before) = (Instant::now(), appliance.processor_time()?);
    wait(hosts, Duration::from_secs(seconds))?;
    let taken = appliance.processor_time()? - before;
    Ok(taken.as_secs_f64() / start.elapsed().as_secs_f64())
}

/// Lets time pass with every host keeping alive, each at its own moment.
fn wait(hosts: &mut Hosts, time: Duration) -> Result<()> {
    let start = Instant::now();
    let step = KATO / 2 / u32::try_from(hosts.len().max(1))?;
    loop {
        for (association, _) in hosts.iter_mut() {
            let left = time.saturating_sub(start.elapsed());
            std::thread::sleep(left.min(step));
            if left <= step {
                return Ok(());
            }
            association.keep_alive()?;
        }
        ensure!(!hosts.is_empty(), "no hosts");
    }
}

/// The median latencies in microseconds: under load, and of first commands.
fn latencies(mut stream: TcpStream, firsts: usize, hosts: &mut Hosts) -> Result<(f64, f64)> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let capsule = read_capsule(BYTES, 1)?;
    let mut warm = Vec::new();
    for _ in 0..WARM_COMMANDS {
        warm.push(latency(&mut stream, &capsule)?);
    }
    let mut first = Vec::new();
    for _ in 0..firsts {
        // Only of the hosts whose time has come; the command's own core is quiet for a second then.
        for (association, _) in hosts.iter_mut() {
            association.keep_alive()?;
        }
        let quiet = Instant::now() + QUIET;
        while Instant::now() < quiet {
            std::hint::spin_loop();
        }
        first.push(latency(&mut stream, &capsule)?);
    }
    Ok((median(warm), median(first)))
}

/// The microseconds that one command takes.
fn latency(stream: &mut TcpStream, capsule: &[u8]) -> Result<f64> {
    let mut reply = [0; C2H_BYTES + BYTES];
    let start = Instant::now();
    let sent = stream.write(capsule)?;
    ensure!(
        sent == capsule.len(),
        "a capsule did not fit an empty socket"
    );
    let mut got = 0;
    while got < reply.len() {
        match stream.read(&mut reply[got..]) {
            Ok(0) => bail!("the connection was closed"),
            Ok(bytes) => got += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ensure!(start.elapsed() < driver::STALL, "no answer");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

/// A thread that answers each command with as many bytes, and sleeps meanwhile.
fn sleeping_echo(cpu: usize) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || -> io::Result<()> {
        pin(cpu);
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let (mut capsule, reply) = ([0; CAPSULE_BYTES], [0; C2H_BYTES + BYTES]);
        loop {
            stream.read_exact(&mut capsule)?;
            stream.write_all(&reply)?;
        }
    });
    Ok(address)
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(address).context("connect to the sleeping echo")
}
