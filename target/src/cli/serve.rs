//! `corebay serve`: runs the appliance, from options or from a configuration file.

use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode};

use corebay_conf::{
    Appliance, Diagnostic, DiskSpec, LocalMachine, Nqn, Options, Size,
    appliance::{LogFormat, LogLevel},
    render_all,
};
use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::appliance::{self, State, ThisMachine};

/// What `corebay serve` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without a file and without options it makes a pool on a sparse file in ./corebay-data, with a thin volume
of 8 GiB, and exports that on 127.0.0.1:4420, with discovery on 4420 and 8009. `corebay volume` makes the
next. It runs until Ctrl-C or SIGTERM. The exit status is 0 where every disk was flushed, else 1: also
where a drive was lost and had not returned.

Examples:
  corebay serve
  corebay serve --size 100GiB --data-dir /srv/corebay --listen 0.0.0.0:4420
  corebay serve --disk ram:1GiB --disk null:1TiB,block=512 --cores 0,1
  corebay serve --disk file:/srv/a.img,size=20GiB --disk /dev/nvme1n1
  corebay serve --config /etc/corebay/corebay.toml")]
pub struct Args {
    /// Serve what this file says (TOML; `corebay check` says every mistake in it)
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "data_dir", "size", "listen", "discovery", "cores", "disks", "nqn",
    ])]
    config: Option<PathBuf>,
    /// The control socket [default: corebay.sock in the data folder]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The folder for data and names
    #[arg(long, value_name = "DIR", default_value = "./corebay-data")]
    data_dir: PathBuf,
    /// The size of the first volume, or of a file that is made and says none of its own
    #[arg(long, value_name = "SIZE", default_value = "8GiB")]
    size: Size,
    /// Where hosts connect; repeatable
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:4420",
        value_delimiter = ',',
        value_parser = listen_address
    )]
    listen: Vec<SocketAddr>,
    /// Where discovery is served besides; repeatable
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:8009",
        value_delimiter = ',',
        value_parser = listen_address
    )]
    discovery: Vec<SocketAddr>,
    /// The CPUs to poll on, one reactor each [default: the first that it may use]
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    cores: Vec<u32>,
    /// A disk, which becomes the next namespace; repeatable: file:PATH[,size=1GiB], ram:1GiB,
    /// null:1TiB or /dev/..., each with ,block=512|4096
    #[arg(long = "disk", value_name = "DISK")]
    disks: Vec<DiskSpec>,
    /// The subsystem's NQN; without it the data folder keeps one
    #[arg(long, value_name = "NQN")]
    nqn: Option<Nqn>,
}

/// An address to listen on. Names are not looked up: which of their addresses is meant is not told.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "an IP address and a port are expected, as in 127.0.0.1:4420, 0.0.0.0:4420 or [::]:4420"
            .to_owned()
    })
}

/// Serves until a signal comes.
pub fn run(args: Args) -> ExitCode {
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Some(failure)) => failure.report("serve"),
        Err(None) => ExitCode::FAILURE,
    }
}

/// The failure is `None` where it has been shown already.
fn serve(args: Args) -> Result<(), Option<Failure>> {
    let (appliance, state) = match &args.config {
        Some(path) => {
            let appliance = shown(corebay_conf::load(path, &ThisMachine))?;
            let state = State::open(appliance.data_dir()).map_err(Some)?;
            (appliance, state)
        }
        None => {
            let state = State::open(&args.data_dir).map_err(Some)?;
            let nqn = state.nqn().map_err(Some)?;
            let options = Options {
                data_dir: args.data_dir,
                size: args.size,
                listen: args.listen,
                discovery: args.discovery,
                cores: args.cores,
                disks: args.disks,
                nqn: args.nqn,
            };
            (
                shown(Appliance::from_options(&options, &nqn, &LocalMachine))?,
                state,
            )
        }
    };
    log_as(&appliance);
    let control = args
        .control
        .unwrap_or_else(|| appliance.data_dir().join("corebay.sock"));
    appliance::serve(&appliance, args.config.as_deref(), &control, state).map_err(Some)
}

/// Shows what there is to say of a configuration.
fn shown(
    outcome: Result<(Appliance, Vec<Diagnostic>), Vec<Diagnostic>>,
) -> Result<Appliance, Option<Failure>> {
    let show = |diagnostics: &[Diagnostic]| {
        if !diagnostics.is_empty() {
            eprint!(
                "{}",
                render_all(diagnostics, std::io::stderr().is_terminal())
            );
        }
    };
    match outcome {
        Ok((appliance, warnings)) => {
            show(&warnings);
            Ok(appliance)
        }
        Err(mistakes) => {
            show(&mistakes);
            Err(None)
        }
    }
}

fn log_as(appliance: &Appliance) {
    let log = appliance.log();
    let level = match log.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let filter = EnvFilter::try_from_env("COREBAY_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    match log.format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_listen_on_have_an_address_and_a_port() {
        for good in ["127.0.0.1:4420", "[::]:4420", "[fe80::1%2]:4420"] {
            assert!(listen_address(good).is_ok(), "{good}");
        }
        for bad in ["localhost:4420", "127.0.0.1", "::1:4420x", ""] {
            let said = listen_address(bad).unwrap_err();
            assert!(said.contains("127.0.0.1:4420"), "{bad}: {said}");
        }
    }
}
