//! `corebay volume`: makes, shows, changes and deletes the volumes of a running appliance's pools.

use std::process::ExitCode;

use corebay_conf::Size;
use serde_json::{Value, json};

use super::{
    Failure, Format,
    client::{Asking, Client, word},
    export::{self, Wish},
    stream,
    table::Table,
};

/// What `corebay volume` is asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A volume is called POOL/VOLUME, or VOLUME where the appliance has one pool; a snapshot is called
POOL/VOLUME@SNAPSHOT. What is there already as it was asked for counts as done, so a command may be
given again; `promote` is given with --origin for that.

What is USED are the blocks that hold something, as hosts are told (NUSE). A pool gives space in whole
extents, some of which snapshots and clones share: `show` says what a volume takes of it.

Examples:
  corebay volume create vm-1 --size 100GiB --export
  corebay volume resize vm-1 200GiB           hosts see it while they use it
  corebay volume clone vm-1@monday vm-1-test --export
  corebay volume set vm-1 --read-only true
  corebay volume delete vm-1-test --force     takes it from hosts, and deletes it")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a volume
    Create {
        /// Its name
        volume: String,
        /// Its size
        #[arg(long, value_name = "SIZE")]
        size: Size,
        /// Reserve all its space; without it, space is taken as it is written
        #[arg(long)]
        thick: bool,
        #[command(flatten)]
        export: Exported,
    },
    /// List the volumes
    List {
        /// Only this pool's
        pool: Option<String>,
    },
    /// Say how a volume is
    #[command(visible_alias = "status")]
    Show {
        /// The volume, or a snapshot
        volume: String,
    },
    /// Give a volume another size
    Resize {
        /// The volume
        volume: String,
        /// Its size from then on
        size: Size,
        /// It may become smaller
        #[arg(long)]
        shrink: bool,
        /// What is cut off may be in use, and is lost
        #[arg(long, requires = "shrink")]
        discard: bool,
    },
    /// Give a volume another name, and its snapshots with it
    Rename {
        /// The volume
        volume: String,
        /// Its name from then on; with its pool's before it, or without
        name: String,
    },
    /// Delete a volume; its space comes back in the background
    Delete {
        /// The volume
        volume: String,
        /// Take it from hosts first
        #[arg(long)]
        force: bool,
    },
    /// Make a volume that begins with the content of a snapshot, or of a volume as it is now
    Clone {
        /// The snapshot or volume
        source: String,
        /// The new volume
        volume: String,
        #[command(flatten)]
        export: Exported,
    },
    /// Give a volume the content of a snapshot of it
    Rollback {
        /// The volume
        volume: String,
        /// The snapshot
        snapshot: String,
        /// Also where hosts may be using it
        #[arg(long)]
        force: bool,
    },
    /// Change what is said of a volume
    Set {
        /// The volume
        volume: String,
        /// Whether nobody may write it
        #[arg(long, value_name = "BOOL")]
        read_only: Option<bool>,
        /// Whether all its space is reserved
        #[arg(long, value_name = "BOOL")]
        thick: Option<bool>,
        #[command(flatten)]
        limits: stream::LimitArgs,
    },
    /// Make a clone what its origin was: it takes over the snapshots that they share. Scripts and controllers
    /// say --origin: without it a clone whose origin was a clone is promoted again when that is given again
    Promote {
        /// The clone
        volume: String,
        /// The snapshot that it was made a clone of: where it was promoted before, nothing is done
        #[arg(long, value_name = "VOLUME@SNAPSHOT")]
        origin: Option<String>,
    },
    /// Copy all that a volume shares with others
    Inflate {
        /// The volume
        volume: String,
    },
    /// End what is under way on a volume: a stream, an image, a copy
    Cancel {
        /// The volume or snapshot
        volume: String,
    },
    #[command(flatten)]
    Stream(stream::Action),
}

/// How a new volume is exported, if it is.
#[derive(Debug, clap::Args)]
pub struct Exported {
    /// Export it: in the appliance's only subsystem, or in one of its own
    #[arg(long)]
    export: bool,
    #[command(flatten)]
    wish: Wish,
}

impl Exported {
    /// As the control socket takes it.
    pub fn params(&self) -> Value {
        match self.export || self.wish.says_something() {
            true => self.wish.params(),
            false => Value::Null,
        }
    }
}

/// Does what is asked.
pub fn run(args: &Args) -> ExitCode {
    match act(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report_as(args.asking.output, "volume"),
    }
}

fn act(args: &Args) -> Result<(), Failure> {
    if let Action::Stream(action) = &args.action {
        return stream::act(action, &args.asking);
    }
    let (method, params) = request(&args.action);
    let long = matches!(args.action, Action::Inflate { .. });
    let mut client = match long {
        true => Client::connect_for_work(&args.asking)?,
        false => Client::connect(&args.asking)?,
    };
    let progress = long.then(|| stream::Progress::start(&args.asking));
    let result = client.call(&format!("volume.{method}"), &params);
    drop(progress);
    let result = result?;
    match (args.asking.output, &args.action) {
        (Format::Json, _) => println!("{result:#}"),
        (_, Action::List { .. }) => print!("{}", list(&result)),
        (_, Action::Delete { .. }) => println!("deleted {}", full_name(&result)),
        (_, Action::Cancel { .. }) => println!("{} is ending", full_name(&result)),
        _ => print!("{}", show(&result)),
    }
    Ok(())
}

fn request(action: &Action) -> (&'static str, Value) {
    match action {
        Action::Create {
            volume,
            size,
            thick,
            export,
        } => (
            "create",
            json!({
                "volume": volume, "bytes": size.bytes(), "thick": thick, "export": export.params(),
            }),
        ),
        Action::List { pool } => ("list", json!({ "pool": pool })),
        Action::Show { volume } => ("show", json!({ "volume": volume })),
        Action::Resize {
            volume,
            size,
            shrink,
            discard,
        } => (
            "resize",
            json!({
                "volume": volume, "bytes": size.bytes(), "shrink": shrink, "discard": discard,
            }),
        ),
        Action::Rename { volume, name } => ("rename", json!({ "from": volume, "name": name })),
        Action::Delete { volume, force } => ("delete", json!({ "volume": volume, "force": force })),
        Action::Clone {
            source,
            volume,
            export,
        } => (
            "clone",
            json!({ "source": source, "volume": volume, "export": export.params() }),
        ),
        Action::Rollback {
            volume,
            snapshot,
            force,
        } => (
            "rollback",
            json!({ "volume": volume, "snapshot": snapshot, "force": force }),
        ),
        Action::Set {
            volume,
            read_only,
            thick,
            limits,
        } => (
            "set",
            json!({
                "volume": volume, "read_only": read_only, "thick": thick, "limits": limits.params(),
            }),
        ),
        Action::Promote { volume, origin } => {
            ("promote", json!({ "volume": volume, "origin": origin }))
        }
        Action::Inflate { volume } => ("inflate", json!({ "volume": volume })),
        Action::Cancel { volume } => ("cancel", json!({ "volume": volume })),
        Action::Stream(_) => unreachable!("it has its own way"),
    }
}

/// `POOL/NAME`.
pub fn full_name(volume: &Value) -> String {
    format!("{}/{}", word(&volume["pool"]), word(&volume["name"]))
}

/// A size for people.
pub fn size(bytes: &Value) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let Some(bytes) = bytes.as_u64() else {
        return "-".to_owned();
    };
    let unit = (bytes.max(1).ilog2() / 10).min(5);
    let scaled = bytes as f64 / f64::from(1 << 10).powi(unit as i32);
    match bytes.is_multiple_of(1 << (10 * unit)) {
        true => format!("{scaled:.0}{}", UNITS[unit as usize]),
        false => format!("{scaled:.2}{}", UNITS[unit as usize]),
    }
}

/// A table of volumes or snapshots.
pub fn list(volumes: &Value) -> String {
    let mut table = Table::new(&["VOLUME", ">SIZE", ">USED", "KIND", "OF", "EXPORTED"]);
    for volume in volumes.as_array().into_iter().flatten() {
        let kind = match (&volume["thick"], &volume["read_only"], &volume["kind"]) {
            _ if !volume["receiving_from_block"].is_null() => "receiving".to_owned(),
            (_, _, kind) if kind != "volume" => word(kind),
            (Value::Bool(true), Value::Bool(true), _) => "thick, read only".to_owned(),
            (Value::Bool(true), ..) => "thick".to_owned(),
            (_, Value::Bool(true), _) => "thin, read only".to_owned(),
            _ => "thin".to_owned(),
        };
        table.row(vec![
            full_name(volume),
            size(&volume["bytes"]),
            size(&volume["used_bytes"]),
            kind,
            word(&volume["origin"]),
            export::in_short(&volume["export"]),
        ]);
    }
    table.to_string()
}

/// A volume, in some lines.
pub fn show(volume: &Value) -> String {
    let mut text = format!(
        "{}: {} of {}, {} used\n  uuid {}\n",
        full_name(volume),
        word(&volume["kind"]),
        size(&volume["bytes"]),
        size(&volume["used_bytes"]),
        word(&volume["uuid"]),
    );
    text += &space(volume);
    let yes = |key: &str| volume[key] == true;
    text += &format!(
        "  {}, {}, blocks of {} bytes\n",
        if yes("thick") { "thick" } else { "thin" },
        if yes("read_only") {
            "read only"
        } else {
            "writable"
        },
        word(&volume["block_size"]),
    );
    match volume["promoted"].as_bool() {
        Some(true) => text += "  promoted\n",
        Some(false) => text += "  was promoted before\n",
        None => {}
    }
    if !volume["origin"].is_null() {
        text += &format!("  made of {}\n", word(&volume["origin"]));
    }
    for (what, limit) in volume["limits"].as_object().into_iter().flatten() {
        if !limit.is_null() {
            let (way, unit) = what.split_once('_').unwrap_or((what, ""));
            let so_many = |count: &Value| match unit {
                "bytes" => size(count),
                _ => format!("{count} {unit}"),
            };
            text += &format!(
                "  {way}s at most {} a second",
                so_many(&limit["per_second"])
            );
            if limit["burst"].as_u64() > Some(0) {
                text += &format!(", {} at once after a pause", so_many(&limit["burst"]));
            }
            text += "\n";
        }
    }
    if !volume["receiving_from_block"].is_null() {
        text += &format!(
            "  a stream was cut off: send it again with --start {}\n",
            volume["receiving_from_block"]
        );
    }
    if !volume["export"].is_null() {
        text += &format!("  exported as {}\n", export::in_short(&volume["export"]));
    }
    text
}

/// What a volume takes of its pool, where that is told and is not just what is used.
fn space(volume: &Value) -> String {
    let bytes = |key: &str| volume["space"][key].as_u64();
    let (Some(own), Some(shared), Some(reserved)) = (
        bytes("exclusive_bytes"),
        bytes("shared_bytes"),
        bytes("reserved_bytes"),
    ) else {
        return String::new();
    };
    if (Some(own), shared, reserved) == (volume["used_bytes"].as_u64(), 0, 0) {
        return String::new();
    }
    let mut text = format!("  takes {} of the pool", size(&json!(own)));
    if shared > 0 {
        text += &format!(
            ", and shares {} with snapshots or clones",
            size(&json!(shared))
        );
    }
    if reserved > 0 {
        text += &format!("; {} more are reserved for it", size(&json!(reserved)));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        for (bytes, text) in [
            (0, "0B"),
            (4096, "4KiB"),
            (1u64 << 40, "1TiB"),
            (3 << 29, "1.50GiB"),
        ] {
            assert_eq!(size(&json!(bytes)), text);
        }
    }

    #[test]
    fn space_is_told_where_it_is_not_what_is_used() {
        let volume = |own: u64, shared: u64, reserved: u64| {
            json!({ "used_bytes": 1 << 20, "space": {
                "exclusive_bytes": own << 20, "shared_bytes": shared << 20, "reserved_bytes": reserved << 20,
            }})
        };
        assert_eq!(space(&volume(1, 0, 0)), "");
        assert_eq!(space(&json!({ "used_bytes": 0, "space": null })), "");
        assert_eq!(space(&volume(4, 0, 0)), "  takes 4MiB of the pool\n");
        assert_eq!(
            space(&volume(1, 2, 3)),
            "  takes 1MiB of the pool, and shares 2MiB with snapshots or clones; 3MiB more are reserved for it\n"
        );
    }

    #[test]
    fn limits_are_for_people() {
        let text = show(&json!({ "limits": {
            "read_bytes": null,
            "write_bytes": { "per_second": 200 << 20, "burst": 0 },
            "write_operations": { "per_second": 5000, "burst": 10000 },
        }}));
        assert!(
            text.contains("  writes at most 200MiB a second\n"),
            "{text}"
        );
        let burst =
            "  writes at most 5000 operations a second, 10000 operations at once after a pause\n";
        assert!(text.contains(burst), "{text}");
    }
}
