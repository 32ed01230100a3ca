//! `corebay array`: looks at the arrays of a running appliance, and changes them, by its control socket.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode, time::Duration};

use corebay_conf::{BlockSize, Size};
use serde_json::{Value, json};

use super::{
    Failure, Format,
    client::{Asking, Client, word},
    examine,
    table::Table,
};
use crate::appliance::create_array_offline;

/// What `corebay array` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Disks and arrays are named as the configuration names them. What would lose data is refused, unless
--lose NAME names what may be lost: a disk (what lies on it), or an array (what its stale members missed).

Examples:
  corebay array create bulk --level raid6 bay-1 bay-2 bay-3 bay-4 bay-5 --spare bay-6 --scrub weekly
  corebay array create bulk --level raid5 --offline /dev/sda /dev/sdb /dev/sdc    without an appliance
  corebay array list
  corebay array status bulk --watch      members, and how far a rebuild or a scrub is
  corebay array examine /dev/nvme?n1     what disks say of themselves, without an appliance
  corebay array replace bulk 3 bay-9     gives the failed role 3 to the disk bay-9
  corebay array add pair fast-3          a leg more for a mirror; or a member that was away is back
  corebay array grow bulk                after all members were replaced by larger ones
  corebay array stop bulk")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// Say how it is every second until nothing is under way
    #[arg(long, global = true)]
    watch: bool,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make an array of blank disks; it is found again at every start
    Create(Create),
    /// Find the array that disks are members of, or one that was stopped
    Assemble {
        /// Its name from now on
        array: String,
        /// Its members, in any order; none where the configuration or an earlier run knows the array
        disks: Vec<String>,
        /// Which array, where the disks belong to several
        #[arg(long, value_name = "UUID")]
        uuid: Option<String>,
        /// Take stale members where too few others are there: what was written without them is lost
        #[arg(long, value_name = "ARRAY")]
        lose: Vec<String>,
        #[command(flatten)]
        care: Care,
    },
    /// Close an array that is not exported; its members stay as they are
    Stop {
        /// The array
        array: String,
    },
    /// List the arrays
    List,
    /// Say of files or devices which array they are members of, without an appliance; nothing is written
    Examine {
        /// Files or devices
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Say how an array is
    Status {
        /// Its name
        array: String,
    },
    /// Take a disk in: a member that was away, a disk for a failed role, or a leg more for a mirror
    Add {
        /// The array
        array: String,
        /// The disk
        disk: String,
        /// What this disk holds may be lost
        #[arg(long, value_name = "DISK")]
        lose: Vec<String>,
    },
    /// Do without a member or a spare, whose disk is used anew where --lose names it; a mirror has one leg less
    Remove {
        /// The array
        array: String,
        /// A role or a disk
        member: String,
    },
    /// Give up a member, as if it had failed; refused where blocks would be lost
    Fail {
        /// The array
        array: String,
        /// A role or a disk
        member: String,
    },
    /// Give the role of a failed member to another disk
    Replace {
        /// The array
        array: String,
        /// A role or a disk
        member: String,
        /// The new disk
        disk: String,
        /// What this disk holds may be lost
        #[arg(long, value_name = "DISK")]
        lose: Vec<String>,
    },
    /// Let a blank disk step in for the next member that fails
    Spare {
        /// The array
        array: String,
        /// The disk
        disk: String,
        /// What this disk holds may be lost
        #[arg(long, value_name = "DISK")]
        lose: Vec<String>,
    },
    /// Become as large as the smallest member allows, while hosts go on
    Grow {
        /// The array
        array: String,
    },
    /// Read everything, and make agree what does not; what was begun goes on after a restart
    Scrub {
        /// The array
        array: String,
        /// End the scrub that is under way, or waits
        #[arg(long)]
        stop: bool,
    },
}

/// How an array is tended.
#[derive(Debug, clap::Args)]
struct Care {
    /// What a rebuild does in a second while hosts are busy, of each member
    #[arg(long, value_name = "SIZE", default_value = "20MiB")]
    rebuild_floor: String,
    /// What it does at most
    #[arg(long, value_name = "SIZE")]
    rebuild_ceiling: Option<String>,
    /// Scrub it by itself: never, daily, weekly, monthly or a time as in 12h
    #[arg(long, value_name = "HOW OFTEN", default_value = "never")]
    scrub: String,
    /// A member that takes longer for a read or a write is given up, where the array can do without it
    #[arg(long, value_name = "TIME", default_value = "5s")]
    member_timeout: String,
    /// What becomes of a member that is much slower than the others: warn or fail
    #[arg(long, value_name = "WHAT", default_value = "warn")]
    slow_members: String,
}

#[derive(Debug, clap::Args)]
struct Create {
    /// The new array's name
    array: String,
    /// Its members; they get its roles in this order
    #[arg(required = true)]
    disks: Vec<String>,
    /// raid0, raid1, raid10, raid5, raid6 or ec
    #[arg(long)]
    level: String,
    /// Strips of data in a stripe, for ec
    #[arg(long)]
    data: Option<u8>,
    /// Strips of parity in a stripe, for ec
    #[arg(long)]
    parity: Option<u8>,
    /// A power of two from 16KiB to 1MiB
    #[arg(long, value_name = "SIZE", default_value = "64KiB")]
    strip: String,
    /// journal, which closes the write hole, or resync, which is cheaper
    #[arg(long, value_name = "HOW", default_value = "journal")]
    consistency: String,
    /// The mirrored zone for a pool's journal: a size, or none [default: 1/64 of the smallest disk, 8MiB
    /// at most, for levels with parity]
    #[arg(long, value_name = "SIZE")]
    zone: Option<String>,
    /// A disk that steps in for a member that fails; repeatable
    #[arg(long = "spare", value_name = "DISK")]
    spares: Vec<String>,
    #[command(flatten)]
    care: Care,
    /// What this disk holds may be lost; repeatable
    #[arg(long, value_name = "DISK")]
    lose: Vec<String>,
    /// Without an appliance, of files and devices that nobody uses: disks are named by their paths. How the
    /// array is tended, and its spares, are said where it is used
    #[arg(long, conflicts_with_all = [
        "spares", "rebuild_floor", "rebuild_ceiling", "scrub", "member_timeout", "slow_members", "watch",
    ])]
    offline: bool,
    /// The size of blocks, 512 or 4096, as in [[disk]] [default: what the medium keeps whole]
    #[arg(long, value_name = "SIZE", requires = "offline", value_parser = block_size)]
    block_size: Option<BlockSize>,
}

fn block_size(text: &str) -> Result<BlockSize, String> {
    let bytes = text
        .parse::<Size>()
        .map_err(|error| error.to_string())?
        .bytes();
    BlockSize::from_bytes(bytes).ok_or_else(|| "blocks have 512 or 4096 bytes".to_owned())
}

impl Create {
    /// Makes it without an appliance.
    fn run_offline(&self, output: Format) -> Result<(), Failure> {
        let shows = output == Format::Text && std::io::stderr().is_terminal();
        let tell = move |done: u64, total: u64| {
            if shows && total > 0 {
                eprint!("\ris being made: {}%\x1b[K", done * 100 / total);
            }
        };
        let made = create_array_offline(&self.params(), self.block_size, tell);
        if shows {
            eprint!("\r\x1b[K");
        }
        let made = made?;
        match output {
            Format::Json => println!("{made}"),
            Format::Text => println!(
                "done; {} of {}, array {}: name it and its disks in [[array]], or use `corebay array assemble`",
                word(&made["array"]),
                gib(&made["bytes"]),
                word(&made["uuid"])
            ),
        }
        Ok(())
    }

    fn params(&self) -> Value {
        json!({
            "array": self.array, "members": self.disks, "spares": self.spares,
            "level": self.level, "data": self.data, "parity": self.parity,
            "strip": self.strip, "consistency": self.consistency, "zone": self.zone,
            "rebuild_floor": self.care.rebuild_floor,
            "rebuild_ceiling": self.care.rebuild_ceiling,
            "scrub": self.care.scrub, "lose": self.lose,
            "member_timeout": self.care.member_timeout, "slow_members": self.care.slow_members,
        })
    }
}

impl Action {
    /// The method, its parameters, and the array it is about.
    fn request(&self) -> (&'static str, Value, Option<&str>) {
        let (method, params) = match self {
            // No request: an appliance has no part in it.
            Self::List | Self::Examine { .. } => return ("list", json!({}), None),
            Self::Create(create) => ("create", create.params()),
            Self::Assemble {
                array,
                disks,
                uuid,
                lose,
                care,
            } => (
                "assemble",
                json!({
                    "array": array, "disks": disks, "uuid": uuid, "lose": lose,
                    "rebuild_floor": care.rebuild_floor,
                    "rebuild_ceiling": care.rebuild_ceiling, "scrub": care.scrub,
                    "member_timeout": care.member_timeout, "slow_members": care.slow_members,
                }),
            ),
            Self::Stop { array } => return ("stop", json!({ "array": array }), None),
            Self::Status { array } => ("status", json!({ "array": array })),
            Self::Grow { array } => ("grow", json!({ "array": array })),
            Self::Scrub { array, stop } => ("scrub", json!({ "array": array, "stop": stop })),
            Self::Fail { array, member } => ("fail", json!({ "array": array, "member": member })),
            Self::Remove { array, member } => {
                ("remove", json!({ "array": array, "member": member }))
            }
            Self::Add { array, disk, lose } => {
                ("add", json!({ "array": array, "disk": disk, "lose": lose }))
            }
            Self::Replace {
                array,
                member,
                disk,
                lose,
            } => (
                "replace",
                json!({ "array": array, "member": member, "disk": disk, "lose": lose }),
            ),
            Self::Spare { array, disk, lose } => (
                "spare",
                json!({ "array": array, "disk": disk, "lose": lose }),
            ),
        };
        (method, params, self.array())
    }

    fn array(&self) -> Option<&str> {
        match self {
            Self::List | Self::Examine { .. } => None,
            Self::Create(Create { array, .. })
            | Self::Assemble { array, .. }
            | Self::Stop { array }
            | Self::Status { array }
            | Self::Add { array, .. }
            | Self::Remove { array, .. }
            | Self::Fail { array, .. }
            | Self::Replace { array, .. }
            | Self::Spare { array, .. }
            | Self::Grow { array }
            | Self::Scrub { array, .. } => Some(array),
        }
    }
}

/// Does what is asked.
pub fn run(args: &Args) -> ExitCode {
    match act(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report_as(args.asking.output, "array"),
    }
}

fn act(args: &Args) -> Result<(), Failure> {
    if let Action::Examine { paths } = &args.action {
        return examine::run(paths, args.asking.output);
    }
    if let Action::Create(create) = &args.action
        && create.offline
    {
        return create.run_offline(args.asking.output);
    }
    let mut client = Client::connect(&args.asking)?;
    let (method, params, array) = args.action.request();
    let is_look = matches!(args.action, Action::List | Action::Status { .. });
    let mut result = client.call(&format!("array.{method}"), &params)?;
    if !is_look {
        match args.asking.output {
            Format::Json => println!("{result}"),
            Format::Text => match result["note"].as_str() {
                Some(note) => println!("done; {note}"),
                None => println!("done"),
            },
        }
        let Some(array) = array.filter(|_| args.watch) else {
            return Ok(());
        };
        result = client.call("array.status", &json!({ "array": array }))?;
    }
    loop {
        match (args.asking.output, result.is_array()) {
            // One line each time, for whoever reads along.
            (Format::Json, _) if args.watch => println!("{result}"),
            (Format::Json, _) => println!("{result:#}"),
            (Format::Text, true) => print!("{}", list(&result)),
            (Format::Text, false) => print!("{}", status(&result)),
        }
        if !args.watch || !is_under_way(&result) {
            return Ok(());
        }
        pause();
        result = match array {
            Some(array) => client.call("array.status", &json!({ "array": array }))?,
            None => client.call("array.list", &json!({}))?,
        };
    }
}

/// Something goes over an array, or over one of several.
fn is_under_way(result: &Value) -> bool {
    match result.as_array() {
        Some(arrays) => arrays.iter().any(is_under_way),
        None => {
            let (sweep, state) = (&result["sweep"], result["state"].as_str());
            // What waits for somebody to give the array a disk may wait for long.
            let waits = sweep["waiting"] == true && state == Some("degraded");
            let spares = result["spares"].as_array();
            let steps_in = state == Some("degraded") && spares.is_some_and(|all| !all.is_empty());
            steps_in || !waits && (!sweep.is_null() || state == Some("rebuilding"))
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the command line waits by the machine's clock"
)]
fn pause() {
    std::thread::sleep(Duration::from_secs(1));
}

fn gib(bytes: &Value) -> String {
    format!(
        "{:.2}GiB",
        bytes.as_f64().unwrap_or(0.0) / (1u64 << 30) as f64
    )
}

fn list(arrays: &Value) -> String {
    let mut table = Table::new(&["ARRAY", "LEVEL", ">SIZE", "STATE", "UNDER WAY"]);
    for array in arrays.as_array().into_iter().flatten() {
        table.row(vec![
            word(&array["name"]),
            word(&array["level"]),
            gib(&array["bytes"]),
            word(&array["state"]),
            sweep(&array["sweep"]),
        ]);
    }
    table.to_string()
}

fn sweep(sweep: &Value) -> String {
    if sweep.is_null() {
        return "-".to_owned();
    }
    if sweep["kind"] == "grow" {
        return "growing".to_owned();
    }
    let number = |key: &str| sweep[key].as_f64().unwrap_or(0.0);
    let waits = sweep["waiting"] == true;
    let percent = 100.0 * number("done_bytes") / number("total_bytes").max(1.0);
    let rate = number("bytes_per_second") / f64::from(1 << 20);
    let left = match sweep["seconds_left"].as_u64() {
        Some(seconds) => format!(
            "{}:{:02}:{:02} left",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
        None => "time left unknown".to_owned(),
    };
    if waits {
        return format!("{} {percent:.1}%, waiting", word(&sweep["kind"]));
    }
    if sweep["bytes_per_second"].is_null() {
        return format!("{} {percent:.1}%", word(&sweep["kind"]));
    }
    format!(
        "{} {percent:.1}%, {rate:.1} MiB/s, {left}",
        word(&sweep["kind"])
    )
}

fn status(array: &Value) -> String {
    if array["state"] == "absent" {
        return format!(
            "{}: absent\n  {}\n",
            word(&array["name"]),
            word(&array["trouble"])
        );
    }
    let mut text = format!(
        "{}: {}, {}, {}\n  uuid {}, strip {} bytes, {}{}\n  under way: {}\n",
        word(&array["name"]),
        word(&array["level"]),
        gib(&array["bytes"]),
        word(&array["state"]),
        word(&array["uuid"]),
        word(&array["strip_bytes"]),
        word(&array["consistency"]),
        match array["zone_bytes"].as_u64() {
            None | Some(0) => String::new(),
            Some(bytes) => format!(", mirrored zone {} KiB", bytes >> 10),
        },
        sweep(&array["sweep"]),
    );
    let mut table = Table::new(&[">ROLE", "DISK", "STATE", ">LATENCY", ">OVERDUE"]);
    for member in array["members"].as_array().into_iter().flatten() {
        let mut state = word(&member["state"]);
        if member["slow"] == true {
            state += ", slow";
        }
        if member["unended"] != 0 {
            state += ", not quiet";
        }
        table.row(vec![
            word(&member["role"]),
            word(&member["disk"]),
            state,
            latency(&member["latency_us"]),
            word(&member["overdue"]),
        ]);
    }
    text += &table.to_string();
    for spare in array["spares"].as_array().into_iter().flatten() {
        text += &format!("spare {}\n", word(spare));
    }
    for refused in array["refused"].as_array().into_iter().flatten() {
        text += &format!(
            "refused {}: {}\n",
            word(&refused["disk"]),
            word(&refused["why"])
        );
    }
    text + &scrubs(array)
}

/// How long a member's commands take.
fn latency(micros: &Value) -> String {
    match micros.as_u64() {
        None => "-".to_owned(),
        Some(micros @ 0..10_000) => format!("{micros} us"),
        Some(micros) => format!("{} ms", micros / 1000),
    }
}

/// How the last scrub ended, and when the next one begins.
fn scrubs(array: &Value) -> String {
    let mut text = String::new();
    let (last, next) = (&array["scrubbed"], &array["scrub_in_seconds"]);
    if let Some(error) = last["error"].as_str() {
        text += &format!(
            "last scrub: {} ago, ended early: {error}\n",
            span(&last["seconds_ago"])
        );
    } else if !last.is_null() {
        text += &format!(
            "last scrub: {} ago, took {}, {} stripes did not agree{}, {} lost\n",
            span(&last["seconds_ago"]),
            span(&last["seconds"]),
            last["mismatches"],
            some(&last["mismatched_stripes"]),
            last["lost_stripes"].as_array().map_or(0, Vec::len),
        );
    }
    if !next.is_null() {
        text += &format!("next scrub: in {}\n", span(next));
    }
    if let Some(trouble) = array["trouble"].as_str() {
        let lost = array["lost_stripes"].as_array();
        let lost = lost.is_some_and(|lost| !lost.is_empty()) || !array["resync_lost"].is_null();
        let word = match (array["state"].as_str(), lost) {
            (Some("stopped"), _) => "stopped",
            (_, true) => "lost",
            (_, false) => "closed",
        };
        text += &format!("{word}: {trouble}\n");
    }
    text
}

/// The first of some stripes.
fn some(stripes: &Value) -> String {
    let stripes = stripes.as_array().map_or(&[][..], Vec::as_slice);
    let shown: Vec<String> = stripes.iter().take(8).map(Value::to_string).collect();
    match (shown.is_empty(), stripes.len() > shown.len()) {
        (true, _) => String::new(),
        (_, true) => format!(" ({}, ...)", shown.join(", ")),
        (_, false) => format!(" ({})", shown.join(", ")),
    }
}

/// A time of so many seconds.
fn span(seconds: &Value) -> String {
    let seconds = seconds.as_u64().unwrap_or(0);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_watched_is_not_over_before_a_spare_has_stepped_in() {
        let array = |state: &str, spares: &[&str], sweep: Value| {
            is_under_way(&json!({ "state": state, "spares": spares, "sweep": sweep }))
        };
        assert!(array("degraded", &["s"], Value::Null));
        assert!(array("degraded", &["s"], json!({ "waiting": true })));
        assert!(array("rebuilding", &[], Value::Null));
        assert!(array("good", &["s"], json!({ "kind": "scrub" })));
        assert!(!array("good", &["s"], Value::Null));
        assert!(!array("degraded", &[], Value::Null));
        assert!(!array("degraded", &[], json!({ "waiting": true })));
        assert!(!array("stopped", &["s"], Value::Null));
    }
}
