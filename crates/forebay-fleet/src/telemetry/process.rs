//! The `process_*` metrics that every Prometheus dashboard knows, from `/proc` by hand: five small files, no crate. Where
//! there is no `/proc`, there are no such series. Read at render only; it must never be called while a request is served.

use std::fs;

use super::metrics::{
    PROCESS_CPU, PROCESS_MAX_FDS, PROCESS_OPEN_FDS, PROCESS_RESIDENT, PROCESS_START, PROCESS_THREADS, PROCESS_VIRTUAL,
};
use super::recorder::{Def, Text};

/// `USER_HZ`, in which /proc counts CPU time: 100 on every architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Writes what `/proc/self` tells.
pub(crate) fn render(text: &mut Text) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let stat = read("/proc/self/stat");
    let fields = stat_fields(&stat);
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok());
    // Counted after the parenthesised name, from 0: utime 11, stime 12, starttime 19 (proc(5) counts from 1, and two more).
    let cpu = ticks(11).zip(ticks(12)).map(|(user, system)| (user + system) / TICKS_PER_SECOND);
    let boot = number_after(&read("/proc/stat"), "btime");
    let start = ticks(19).zip(boot).map(|(start, boot)| boot + start / TICKS_PER_SECOND);
    let status = read("/proc/self/status");
    let limits = read("/proc/self/limits");
    let rows: [(&Def, Option<f64>); 7] = [
        (&PROCESS_CPU, cpu),
        (&PROCESS_START, start),
        (&PROCESS_RESIDENT, number_after(&status, "VmRSS:").map(|kib| kib * 1024.0)),
        (&PROCESS_VIRTUAL, number_after(&status, "VmSize:").map(|kib| kib * 1024.0)),
        (&PROCESS_THREADS, number_after(&status, "Threads:")),
        (&PROCESS_MAX_FDS, number_after(&limits, "Max open files")),
        (&PROCESS_OPEN_FDS, open_fds()),
    ];
    for (def, value) in rows {
        if let Some(value) = value {
            text.number(def, &[], value);
        }
    }
}

/// The fields after the program's name, which may itself hold spaces and parentheses.
fn stat_fields(stat: &str) -> Vec<&str> {
    stat.rsplit_once(')').map_or_else(Vec::new, |(_, rest)| rest.split_ascii_whitespace().collect())
}

/// The first word, as a number, of the line that starts so.
fn number_after(text: &str, start: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(start))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Without the one by which the folder is read.
fn open_fds() -> Option<f64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(count.saturating_sub(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_a_parenthesis_does_not_shift_the_fields() {
        let fields = stat_fields("12 (a) b) S 1 2 3");
        assert_eq!(fields, ["S", "1", "2", "3"]);
    }

    #[test]
    fn numbers_are_found_by_the_start_of_their_line() {
        let limits = "Max processes  1 1\nMax open files            1024    4096    files\n";
        assert_eq!(number_after(limits, "Max open files"), Some(1024.0));
        assert_eq!(number_after("Max open files   unlimited", "Max open files"), None);
        assert_eq!(number_after("", "VmRSS:"), None);
    }
}
