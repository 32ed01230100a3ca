//! How results are printed.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{
    super::table::Table,
    content::Mismatch,
    plan::Plan,
    stats::{Completions, Direction, MISMATCHES_SHOWN_MAX, Stats, Verified},
};

/// The quantiles that are reported: for programs, for people, and which.
const QUANTILES: [(&str, &str, f64); 5] = [
    ("p50", "p50", 0.5),
    ("p90", "p90", 0.9),
    ("p99", "p99", 0.99),
    ("p99_9", "p99.9", 0.999),
    ("p99_99", "p99.99", 0.9999),
];

/// A rate for people: 1234, 12.3k, 1.23M.
pub fn rate(value: f64) -> String {
    match value {
        v if v >= 9_999_500.0 => format!("{:.1}M", v / 1e6),
        v if v >= 999_950.0 => format!("{:.2}M", v / 1e6),
        v if v >= 9_999.5 => format!("{:.1}k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

fn per_second(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() {
        0.0
    } else {
        count as f64 / elapsed.as_secs_f64()
    }
}

/// The results for people.
pub fn as_text(plan: &Plan, stats: &Stats) -> String {
    let directions = [
        (Direction::Read, &stats.read),
        (Direction::Write, &stats.write),
    ];
    let mut heading = vec!["", ">IOPS", ">MB/s", ">MiB/s", ">min", ">mean"];
    let shown: Vec<String> = QUANTILES
        .iter()
        .map(|(_, name, _)| format!(">{name}"))
        .collect();
    heading.extend(shown.iter().map(String::as_str));
    heading.extend([">max", ""]);
    let mut table = Table::new(&heading);
    for (direction, completions) in directions {
        if completions.ios > 0 {
            table.row(row(direction.name(), completions, plan, stats.elapsed));
        }
    }
    if stats.read.ios > 0 && stats.write.ios > 0 {
        let mut all = stats.read.clone();
        all.ios += stats.write.ios;
        let merged = all.latency_ns.add(&stats.write.latency_ns);
        merged.expect("all histograms have the same bounds");
        table.row(row("both", &all, plan, stats.elapsed));
    }
    let mut text = table.to_string();
    text += &format!(
        "{} commands in {:.2} s\n",
        stats.read.ios + stats.write.ios,
        stats.elapsed.as_secs_f64()
    );
    if stats.associations > 1 {
        text += &format!("connected again {} times\n", stats.associations - 1);
    }
    match stats.error_count() {
        0 => text += "no errors\n",
        errors => {
            text += &format!("{errors} errors:\n");
            for ((direction, error), count) in &stats.errors {
                text += &format!("  {count} x {}: {error}\n", direction.name());
            }
        }
    }
    if plan.args.verify {
        text += &verified_as_text(&stats.verify);
    }
    text
}

fn row(name: &str, completions: &Completions, plan: &Plan, elapsed: Duration) -> Vec<String> {
    let iops = per_second(completions.ios, elapsed);
    let bytes = iops * f64::from(plan.unit_bytes);
    let latency = &completions.latency_ns;
    let mut cells = vec![
        name.to_owned(),
        rate(iops),
        format!("{:.1}", bytes / 1e6),
        format!("{:.1}", bytes / f64::from(1 << 20)),
        micros(latency.min() as f64),
        micros(latency.mean()),
    ];
    let quantiles = QUANTILES.iter();
    cells.extend(quantiles.map(|(_, _, q)| micros(latency.value_at_quantile(*q) as f64)));
    cells.push(micros(latency.max() as f64));
    cells.push("us".to_owned());
    cells
}

fn micros(nanos: f64) -> String {
    match nanos / 1e3 {
        us if us >= 9_999.5 => format!("{us:.0}"),
        us => format!("{us:.1}"),
    }
}

fn verified_as_text(verified: &Verified) -> String {
    let mut text = format!(
        "verified {} blocks, {} mismatches",
        verified.blocks, verified.mismatched
    );
    if verified.unknown > 0 {
        text += &format!(", {} blocks of unknown content", verified.unknown);
    }
    let (all, read) = verified.read_back;
    if read < all {
        text += &format!("; of {all} units written only {read} were read back");
    }
    text.push('\n');
    for mismatch in &verified.mismatches {
        text += &format!("  {mismatch}\n");
    }
    if verified.mismatches.len() == MISMATCHES_SHOWN_MAX {
        text += "  and perhaps others\n";
    }
    text
}

/// The results for programs.
pub fn as_json(plan: &Plan, stats: &Stats, notes: &[String], interrupted: bool) -> Value {
    let errors: Vec<Value> = stats
        .errors
        .iter()
        .map(|((direction, error), count)| {
            json!({ "direction": direction.name(), "error": error, "count": count })
        })
        .collect();
    json!({
        "target": {
            "address": plan.address.to_string(),
            "nqn": plan.nqn.as_str(),
            "nsid": plan.args.nsid,
            "block_bytes": plan.lba_bytes,
            "blocks": plan.namespace_blocks,
        },
        "workload": workload(plan),
        "elapsed_s": stats.elapsed.as_secs_f64(),
        "interrupted": interrupted,
        "associations": stats.associations,
        "total": totals(stats.read.ios + stats.write.ios, plan, stats.elapsed),
        "read": direction_as_json(&stats.read, plan, stats.elapsed),
        "write": direction_as_json(&stats.write, plan, stats.elapsed),
        "errors": errors,
        "verify": plan.args.verify.then(|| verified_as_json(&stats.verify)),
        "notes": notes,
    })
}

fn workload(plan: &Plan) -> Value {
    let args = &plan.args;
    let digests = args.host.digests();
    json!({
        "rw": args.rw.name(),
        "read_percent": plan.read_percent,
        "pattern": args.pattern.name(),
        "io_bytes": plan.unit_bytes,
        "span_bytes": plan.units * u64::from(plan.unit_bytes),
        "depth": args.depth,
        "queues": plan.queues,
        "cores": plan.cpus,
        "time_s": args.time.duration().as_secs_f64(),
        "ramp_s": args.ramp.duration().as_secs_f64(),
        "io_count": args.io_count,
        "rate_iops": args.rate,
        "seed": args.seed,
        "header_digest": digests.header,
        "data_digest": digests.data,
    })
}

fn totals(ios: u64, plan: &Plan, elapsed: Duration) -> Value {
    let iops = per_second(ios, elapsed);
    let bytes = iops * f64::from(plan.unit_bytes);
    json!({
        "ios": ios,
        "bytes": ios * u64::from(plan.unit_bytes),
        "iops": iops,
        "mb_per_s": bytes / 1e6,
        "mib_per_s": bytes / f64::from(1 << 20),
    })
}

fn direction_as_json(completions: &Completions, plan: &Plan, elapsed: Duration) -> Value {
    if completions.ios == 0 {
        return Value::Null;
    }
    let mut value = totals(completions.ios, plan, elapsed);
    value["latency_us"] = latency_as_json(&completions.latency_ns);
    value
}

fn latency_as_json(latency_ns: &Histogram<u64>) -> Value {
    let mut value = json!({
        "min": latency_ns.min() as f64 / 1e3,
        "mean": latency_ns.mean() / 1e3,
        "stddev": latency_ns.stdev() / 1e3,
        "max": latency_ns.max() as f64 / 1e3,
    });
    for (name, _, quantile) in QUANTILES {
        value[name] = json!(latency_ns.value_at_quantile(quantile) as f64 / 1e3);
    }
    value
}

fn verified_as_json(verified: &Verified) -> Value {
    let mismatches: Vec<Value> = verified.mismatches.iter().map(mismatch_as_json).collect();
    json!({
        "blocks": verified.blocks,
        "blocks_unknown": verified.unknown,
        "units_written": verified.read_back.0,
        "units_read_back": verified.read_back.1,
        "mismatched_blocks": verified.mismatched,
        "mismatches": mismatches,
    })
}

fn mismatch_as_json(mismatch: &Mismatch) -> Value {
    json!({
        "lba": mismatch.lba,
        "found": mismatch.found.name(),
        "expected_generation": mismatch.expected.map(|stamp| stamp.generation),
        "text": mismatch.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_for_people() {
        let cases = [
            (0.0, "0"),
            (9999.0, "9999"),
            (12_345.0, "12.3k"),
            (999_940.0, "999.9k"),
            (1_234_567.0, "1.23M"),
            (12_345_678.0, "12.3M"),
        ];
        for (value, text) in cases {
            assert_eq!(rate(value), text);
        }
    }

    #[test]
    fn latencies_keep_their_order() {
        let mut latency = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        for micros in 1..=1000u64 {
            latency.record(micros * 1000).unwrap();
        }
        let value = latency_as_json(&latency);
        let at = |name: &str| value[name].as_f64().unwrap();
        assert!((at("p50") - 500.0).abs() < 1.0);
        assert!((at("p99_9") - 999.0).abs() < 1.5);
        assert!(at("min") <= at("p50") && at("p99_99") <= at("max"));
    }
}
