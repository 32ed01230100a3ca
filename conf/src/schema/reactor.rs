//! `[reactor]` and `[log]`.

use std::time::Duration;

use crate::appliance::{Hugepages, Log, LogFormat, LogLevel};
use crate::diagnostic::Draft;
use crate::limits;
use crate::reader::{At, Field, Section};
use crate::units::{Size, TimeSpan};

/// The arena's page: memory is given out in whole ones.
const PAGE: Size = Size::MIB.times(2);
const MEMORY_DEFAULT: Size = Size::MIB.times(256);
const IDLE_SLEEP_DEFAULT: Duration = Duration::from_millis(1);
const IDLE_SLEEP_MIN: Duration = Duration::from_micros(1);
const IDLE_SLEEP_MAX: Duration = Duration::from_secs(10);
/// Linux's own bound on CPU numbers (NR_CPUS).
const CORE_MAX: u64 = 8191;

/// `[reactor]` by itself.
pub(crate) struct RawReactor {
    /// Empty where nothing is said of them: the first that the process may use.
    pub(crate) cores: Vec<At<u32>>,
    pub(crate) memory: At<Size>,
    /// A part of the memory that is for arrays to come.
    pub(crate) array_memory: Option<At<Size>>,
    pub(crate) hugepages: Hugepages,
    pub(crate) idle_sleep: Option<Duration>,
}

impl Default for RawReactor {
    fn default() -> RawReactor {
        RawReactor {
            cores: Vec::new(),
            memory: At::default(MEMORY_DEFAULT),
            array_memory: None,
            hugepages: Hugepages::Auto,
            idle_sleep: Some(IDLE_SLEEP_DEFAULT),
        }
    }
}

/// Reads `[reactor]`, where it is there.
pub(crate) fn read(section: Option<Section<'_, '_>>) -> RawReactor {
    let Some(mut section) = section else {
        return RawReactor::default();
    };
    let raw = RawReactor {
        cores: cores(&mut section),
        memory: memory(&mut section),
        array_memory: section
            .size("array_memory", Size::from_bytes(0)..=limits::MEMORY_MAX)
            .given()
            .cloned(),
        hugepages: section
            .choice(
                "hugepages",
                &[
                    ("auto", Hugepages::Auto),
                    ("require", Hugepages::Require),
                    ("off", Hugepages::Off),
                ],
            )
            .or(Hugepages::Auto),
        idle_sleep: idle_sleep(&mut section),
    };
    section.finish();
    raw
}

fn cores(section: &mut Section<'_, '_>) -> Vec<At<u32>> {
    let list = match section.list("cores", "a list of CPU numbers, as in [0, 1]") {
        Field::Absent | Field::Wrong => return Vec::new(),
        Field::Given(list) => list,
    };
    if list.value.is_empty() {
        let draft = Draft::error("an appliance needs at least one core")
            .at(list.span, "expected a CPU number");
        section.sink.push(draft.help("write cores = [0]"));
    }
    if list.value.len() > limits::CORES_MAX {
        let label = format!("expected at most {}", limits::CORES_MAX);
        section
            .sink
            .push(Draft::error("these are too many cores").at(list.span, label));
    }
    let numbers = list.value.into_iter().take(limits::CORES_MAX);
    let numbers = numbers.map(|node| section.element_integer("cores", node, 0..=CORE_MAX));
    let numbers = numbers.filter_map(|field| field.given().cloned());
    numbers
        .filter_map(|at| {
            Some(At {
                value: u32::try_from(at.value).ok()?,
                span: at.span,
            })
        })
        .collect()
}

fn memory(section: &mut Section<'_, '_>) -> At<Size> {
    let range = limits::MEMORY_PER_CORE_MIN..=limits::MEMORY_MAX;
    let memory = section.size("memory", range).or_at(MEMORY_DEFAULT);
    if !memory.value.bytes().is_multiple_of(PAGE.bytes()) {
        let draft = Draft::error(format!("`memory` is no multiple of {PAGE}"))
            .at(memory.span, format!("expected a multiple of {PAGE}"));
        let rounded = Size::from_bytes(memory.value.bytes().next_multiple_of(PAGE.bytes()));
        section
            .sink
            .push(draft.help(format!("the next is \"{rounded}\"")));
    }
    memory
}

fn idle_sleep(section: &mut Section<'_, '_>) -> Option<Duration> {
    let range = IDLE_SLEEP_MIN.into()..=TimeSpan::from(IDLE_SLEEP_MAX);
    let expected = format!(
        "a time from {} to {}, or \"never\"",
        range.start(),
        range.end()
    );
    let read = section.parsed("idle_sleep", &expected, |text| match text {
        "never" => Ok(None),
        _ => Ok(Some(text.parse::<TimeSpan>()?)),
    });
    if let Field::Given(At {
        value: Some(time),
        span,
    }) = &read
        && !range.contains(time)
    {
        section.sink.push(
            Draft::error("`idle_sleep` is out of range").at(*span, format!("expected {expected}")),
        );
    }
    read.map(|time| time.map(TimeSpan::duration))
        .or(Some(IDLE_SLEEP_DEFAULT))
}

/// What is not said in the file.
pub(crate) fn default_log() -> Log {
    Log {
        level: LogLevel::Info,
        format: LogFormat::Text,
    }
}

/// Reads `[log]`, where it is there.
pub(crate) fn read_log(section: Option<Section<'_, '_>>) -> Log {
    let mut log = Log {
        level: LogLevel::Info,
        format: LogFormat::Text,
    };
    let Some(mut section) = section else {
        return log;
    };
    let levels = [
        LogLevel::Error,
        LogLevel::Warn,
        LogLevel::Info,
        LogLevel::Debug,
        LogLevel::Trace,
    ];
    let levels = levels.map(|level| (level.as_str(), level));
    log.level = section.choice("level", &levels).or(log.level);
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    log.format = section.choice("format", &formats).or(log.format);
    section.finish();
    log
}
