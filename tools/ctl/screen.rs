//! The status on one screen: 80 columns, and 24 lines for three nodes with two storages. What is
//! said is never cut; where it is longer than a line of the terminal it goes on in the next.

use std::fmt::Write;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use standby::admin::{MemberStatus, PackState, PackStatus, Status, StorageStatus, TaskStatus};

/// Columns of a terminal that does not say how many it has. Tables are as wide, if names are short.
pub(crate) const WIDTH: usize = 80;

/// What a line begins with that goes on with another one.
const INDENT: &str = "  ";

/// Of what was told, the last so many are shown.
const NOTICES_MAX: usize = 5;

/// The status for people, each line with its end. `width` is that of the terminal in columns; what
/// reads it, if it is none, gets each line as a whole.
pub(crate) fn screen(status: &Status, zone: &TimeZone, width: Option<usize>) -> String {
    let mut lines = of_node(status, zone);
    lines.extend(of_members(&status.members, width));
    lines.extend(of_storages(&status.storages, width));
    let notices = &status.notices;
    let notices = &notices[notices.len().saturating_sub(NOTICES_MAX)..];
    if !notices.is_empty() {
        lines.push(String::new());
    }
    for notice in notices {
        lines.push(format!("{}  {}", notice.when, notice.text));
    }
    let mut text = String::new();
    for line in &lines {
        put_wrapped(&mut text, &shown(line.trim_end()), width);
    }
    text
}

/// How far a pack is at a node.
pub(crate) fn pack(node: &str, pack: &PackStatus) -> String {
    let PackStatus {
        storage,
        bytes_before,
        bytes,
        error,
        ..
    } = pack;
    match pack.state {
        PackState::Waiting => format!("storage {storage}: {node} waits for its turn"),
        PackState::Packing => format!("storage {storage}: {node} packs"),
        PackState::Failed => {
            let why = error.as_deref().unwrap_or("it is not known why");
            format!("storage {storage}: {node} has failed: {why}")
        }
        PackState::Done => match (bytes_before, bytes) {
            (Some(before), Some(bytes)) => {
                let (before, bytes) = (size(*before), size(*bytes));
                format!("storage {storage}: {node} has packed: {bytes}, were {before}")
            }
            _ => format!("storage {storage}: {node} has packed"),
        },
    }
}

/// Adds a line, or as many as it needs.
fn put_wrapped(text: &mut String, line: &str, width: Option<usize>) {
    let mut rest = line;
    let mut indent = "";
    while let Some(width) = width {
        let room = width.saturating_sub(indent.len()).max(1);
        let Some((end, _)) = rest.char_indices().nth(room) else {
            break;
        };
        // A space that would be the first character of the next line may end this one.
        let blank = rest[..end].rfind(' ').filter(|at| *at > 0);
        let at = match rest[end..].starts_with(' ') {
            true => end,
            false => blank.unwrap_or(end),
        };
        // Writing to a text does not fail.
        let _ = writeln!(text, "{indent}{}", rest[..at].trim_end());
        rest = rest[at..].trim_start();
        indent = INDENT;
    }
    if !rest.is_empty() || indent.is_empty() {
        let _ = writeln!(text, "{indent}{rest}");
    }
}

fn of_node(status: &Status, zone: &TimeZone) -> Vec<String> {
    let mut lines = vec![
        format!(
            "group {}   node {}   site {}   version {}   up {}",
            status.group,
            status.node,
            or_dash(&status.site),
            status.version,
            duration(status.uptime)
        ),
        format!(
            "primary {}   home {}   epoch {}   history {}",
            status.primary.as_deref().unwrap_or("unknown"),
            or_dash(&status.home),
            or_dash(&status.epoch),
            or_dash(cut(&status.history, 12).trim_end_matches('~'))
        ),
        format!(
            "{}: {}   writers {}   readers {}{}",
            status.role.name(),
            or_dash(&status.state),
            status.writers.name(),
            status.readers.name(),
            if status.draining { "   draining" } else { "" }
        ),
    ];
    if let Some(why) = &status.failed {
        lines.push(format!("FAILED: {why}"));
    }
    for warning in &status.warnings {
        lines.push(format!("WARNING: {warning}"));
    }
    for trouble in &status.troubles {
        lines.push(format!("! {trouble}"));
    }
    let journal = status.journal.as_ref().map(|journal| {
        let bytes = size(journal.bytes);
        format!("   journal from {}, {bytes}", journal.first)
    });
    lines.push(format!(
        "log {}   committed {}   applied {}{}",
        status.last,
        status.committed,
        status.applied,
        journal.unwrap_or_default()
    ));
    let time = status.last_time.map(|time| local_time(time, zone));
    lines.push(format!(
        "last transaction {}   {}",
        or_dash(&status.last_tid),
        time.unwrap_or_default()
    ));
    lines.push(format!(
        "daemon {}   {}",
        or_dash(&status.daemon),
        match &status.view {
            Some(view) => format!("view {view}"),
            None => "NOT IN THE GROUP".to_owned(),
        }
    ));
    lines.extend(of_work(status));
    lines
}

/// What is going on.
fn of_work(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    let clients = status.clients;
    lines.push(format!(
        "clients {}   waiting for a primary {}",
        clients.connected, clients.parked
    ));
    if let Some(arbiter) = &status.arbiter {
        let in_sync = status.in_sync.join(", ");
        lines.push(format!("arbiter {arbiter}   in sync {in_sync}"));
    }
    if !status.witnesses.is_empty() {
        let witnesses = status.witnesses.iter().map(|it| {
            let answers = match it.answers {
                Some(true) => "answers",
                Some(false) => "SILENT",
                None => "not asked yet",
            };
            format!("{} {answers}", it.address)
        });
        let witnesses: Vec<String> = witnesses.collect();
        lines.push(format!("witness {}", witnesses.join("   ")));
    }
    if let Some(pack) = &status.pack {
        lines.push(format!("packing {pack}"));
    }
    lines.extend(status.tasks.iter().map(task));
    if let Some(copy) = &status.copy {
        let (done, total) = (size(copy.done), size(copy.total));
        lines.push(format!("copying from {}: {done} of {total}", copy.from));
    }
    lines
}

/// A command that takes long.
pub(crate) fn task(task: &TaskStatus) -> String {
    let TaskStatus {
        command,
        what,
        done,
        total,
    } = task;
    let of = match total {
        0 => String::new(),
        total => format!(" of {}", size(*total)),
    };
    let line = format!("{command}: {what}: {}{of}", size(*done));
    // What others have named does not reach the terminal as it is.
    cut(&line, WIDTH)
}

const fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// The width of a column of names: as wide as the longest, as far as there is room.
fn column<'a>(
    least: usize,
    names: impl Iterator<Item = &'a String>,
    width: Option<usize>,
) -> usize {
    let spare = width.map_or(usize::MAX - least, |width| width.saturating_sub(WIDTH));
    let longest = names.map(|name| name.chars().count()).max();
    longest.unwrap_or_default().clamp(least, least + spare)
}

fn of_members(members: &[MemberStatus], width: Option<usize>) -> Vec<String> {
    if members.is_empty() {
        return Vec::new();
    }
    let site_width = column(8, members.iter().map(|it| &it.site), width);
    let row = |cells: [&str; 10]| {
        let [
            node,
            role,
            vote,
            site,
            prio,
            applied,
            lag,
            bytes,
            seconds,
            heard,
        ] = cells;
        format!(
            "{node:<10} {role:<9} {vote:<4} {:<site_width$} {prio:>4} {applied:>10} {lag:>7} \
             {bytes:>8} {seconds:>6} {heard:>5}",
            cut(site, site_width)
        )
    };
    let header = [
        "NODE", "ROLE", "VOTE", "SITE", "PRIO", "APPLIED", "LAG", "BYTES", "SECS", "HEARD",
    ];
    let mut lines = vec![String::new(), row(header)];
    for member in members {
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |it| it.to_string());
        let tenths = |number: Option<f64>| number.map_or("-".to_owned(), |it| format!("{it:.1}"));
        let is_known = !member.site.is_empty();
        lines.push(row([
            &member.node,
            if member.here {
                member.role.name()
            } else {
                "ABSENT"
            },
            if member.voter { "yes" } else { "no" },
            if is_known { &member.site } else { "-" },
            &number(is_known.then_some(member.priority.into())),
            &number(member.applied),
            &number(member.lag),
            &member.lag_bytes.map_or("-".to_owned(), size),
            &tenths(member.lag_seconds),
            &tenths(member.heard),
        ]));
    }
    lines
}

fn of_storages(storages: &[StorageStatus], width: Option<usize>) -> Vec<String> {
    if storages.is_empty() {
        return Vec::new();
    }
    let name_width = column(24, storages.iter().map(|it| &it.name), width);
    let row = |cells: [&str; 6]| {
        let [name, tid, objects, bytes, clients, votes] = cells;
        let name = cut(name, name_width);
        format!("{name:<name_width$} {tid:<16} {objects:>12} {bytes:>8} {clients:>7} {votes:>7}")
    };
    let header = [
        "STORAGE", "LAST TID", "OBJECTS", "SIZE", "CLIENTS", "WAITING",
    ];
    let mut lines = vec![String::new(), row(header)];
    for storage in storages {
        lines.push(row([
            &storage.name,
            &storage.tid,
            &storage.objects.to_string(),
            &size(storage.bytes),
            &storage.clients.to_string(),
            &storage.waiting_votes.to_string(),
        ]));
        if let Some(tid) = &storage.history_from {
            lines.push(format!("  without revisions before {tid}"));
        }
    }
    lines
}

/// A text of at most so many characters; what is cut off has a tilde in its place.
fn cut(text: &str, count_max: usize) -> String {
    if text.chars().count() <= count_max {
        return text.to_owned();
    }
    let begin = text.chars().take(count_max.saturating_sub(1));
    begin.chain(['~']).collect()
}

/// Without characters that a terminal would obey.
fn shown(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(shown).collect()
}

/// Bytes with a unit: at most four digits.
fn size(bytes: u64) -> String {
    let mut value = bytes;
    for unit in ["B", "KB", "MB", "GB", "TB"] {
        if value < 10_000 {
            return format!("{value} {unit}");
        }
        value /= 1024;
    }
    format!("{value} PB")
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match days {
        0 => format!("{hours:02}:{minutes:02}:{:02}", seconds % 60),
        days => format!("{days}d {hours:02}:{minutes:02}"),
    }
}

fn local_time(seconds: f64, zone: &TimeZone) -> String {
    // A number that is no time becomes the nearest that is one, or is not shown.
    match Timestamp::from_second(seconds as i64) {
        Ok(time) => time
            .to_zoned(zone.clone())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use standby::admin::CopyStatus;

    use super::*;

    fn example() -> Status {
        serde_json::from_str(include_str!("../../tests/data/admin/status.json")).unwrap()
    }

    #[test]
    fn three_nodes_fit_on_a_screen() {
        let shown = screen(&example(), &TimeZone::UTC, Some(80));
        assert_eq!(shown, include_str!("../../tests/data/admin/screen.txt"));
        assert!(shown.lines().count() <= 24);
        assert!(shown.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn what_is_wrong_is_seen() {
        let mut status = example();
        status.failed = Some("the disk is gone".to_owned());
        status.view = None;
        status.draining = true;
        status.arbiter = Some("x".to_owned());
        status.copy = Some(CopyStatus {
            from: "beta".to_owned(),
            done: 20_000,
            total: 5 << 40,
        });
        let shown = screen(&status, &TimeZone::UTC, Some(80));
        for text in [
            "FAILED: the disk is gone",
            "NOT IN THE GROUP",
            "draining",
            "arbiter x",
            "copying from beta: 19 KB of 5120 GB",
        ] {
            assert!(shown.contains(text), "{text}\n{shown}");
        }
    }

    #[test]
    fn a_node_that_knows_nothing_can_be_shown() {
        let shown = screen(&Status::default(), &TimeZone::UTC, Some(80));
        assert!(shown.contains("NOT IN THE GROUP") && shown.contains("primary unknown"));
    }

    #[test]
    fn texts_of_others_do_not_reach_the_terminal() {
        let mut status = example();
        status.storages[0].name = "\x1b[2Jred and much too long for its place".to_owned();
        let shown = screen(&status, &TimeZone::UTC, Some(80));
        assert!(shown.contains("?[2Jred and much too lo~ "), "{shown}");
        assert!(!shown.contains('\x1b'));
    }

    #[test]
    fn what_is_said_goes_on_in_the_next_line_and_is_not_cut() {
        let mut status = example();
        status.state =
            "a new cluster is founded when all voters are here; missing: gamma".to_owned();
        status.warnings = vec![format!("of 4 voters {}", "one may be away, ".repeat(9))];
        status.members[0].site = "paris-left-bank".to_owned();
        let words =
            |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        let whole = screen(&status, &TimeZone::UTC, None);
        assert!(
            whole.contains("missing: gamma   writers open   readers open\n"),
            "{whole}"
        );
        assert!(whole.contains("paris-left-bank "), "{whole}");
        for width in [40, 80, 87] {
            status.members[0].site = "paris-left-bank".to_owned();
            let shown = screen(&status, &TimeZone::UTC, Some(width));
            let lines = shown.lines().filter(|line| line.chars().count() > width);
            assert_eq!(lines.count(), 0, "{shown}");
            let cut = if width < 87 {
                "paris-l~"
            } else {
                "paris-left-bank"
            };
            assert!(shown.contains(cut), "{shown}");
            assert!(shown.lines().any(|line| line.starts_with("  ")), "{shown}");
            let expected = words(&whole.replace("paris-left-bank", cut));
            assert_eq!(words(&shown), expected);
        }
    }

    #[test]
    fn a_word_that_is_longer_than_a_line_is_broken() {
        let wrapped = |line: &str, width| {
            let mut text = String::new();
            put_wrapped(&mut text, line, Some(width));
            text
        };
        assert_eq!(wrapped("abcdefgh", 3), "abc\n  d\n  e\n  f\n  g\n  h\n");
        assert_eq!(wrapped("ab cd", 5), "ab cd\n");
        assert_eq!(wrapped("ab cd ef", 5), "ab cd\n  ef\n");
        assert_eq!(wrapped("äöü äöü", 3), "äöü\n  ä\n  ö\n  ü\n");
        assert_eq!(wrapped("", 3), "\n");
        assert_eq!(wrapped("a   b", 1), "a\n  b\n");
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(size(9999), "9999 B");
        assert_eq!(size(10_000), "9 KB");
        assert_eq!(size(u64::MAX), "16383 PB");
        assert_eq!(duration(59), "00:00:59");
        assert_eq!(duration(274_320), "3d 04:12");
        assert_eq!(local_time(f64::NAN, &TimeZone::UTC), "1970-01-01 00:00:00");
        assert_eq!(local_time(f64::INFINITY, &TimeZone::UTC), "");
    }
}
