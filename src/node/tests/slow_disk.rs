//! A disk that does not answer.

use super::disk::Done;
use super::*;

#[test]
fn that_the_disk_does_not_answer_is_told_once_and_so_is_its_return() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    let told = |many: &mut Many| -> Vec<String> {
        let notices = many.node(0).notices();
        let told = notices.filter(|(_, text)| text.starts_with("the disk"));
        told.map(|(_, text)| text.clone()).collect()
    };
    let now = many.now;
    let node = many.node(0);
    node.enqueue(Request::Checkpoint);
    let output = node.poll_output(now);
    assert!(matches!(output, Some(Output::Disk(_))), "{output:?}");
    // What it would do next has to wait.
    node.enqueue(Request::Checkpoint);
    assert!(node.poll_output(now).is_none());
    many.pass(Duration::from_millis(4900));
    assert_eq!(told(&mut many).len(), 0);
    many.pass(Duration::from_secs(3));
    assert_eq!(told(&mut many).len(), 1);
    let now = many.now;
    many.node(0).on_disk(Done::Settled, now);
    many.follow(0);
    let told = told(&mut many);
    assert!(
        told[1].ends_with("answers again, after 7.9 s"),
        "{}",
        told[1]
    );
    many.pass(Duration::from_secs(6));
    assert_eq!(told.len(), 2);
}

#[test]
fn a_disk_that_hangs_costs_no_more_memory_than_for_some_entries() {
    let mut many = Many::three();
    many.start_all();
    many.pass(3 * LEASE);
    many.commit(1, 10);
    let slow = (many.primary() + 1) % 3;
    let now = many.now;
    let node = many.node(slow);
    node.enqueue(Request::Checkpoint);
    let output = node.poll_output(now);
    assert!(matches!(output, Some(Output::Disk(_))), "{output:?}");
    // The others commit.
    for token in 2..10 {
        many.commit(token, 10 << 20);
    }
    let last = many.commit(12, 10);
    let waiting: u64 = { many.node(slow).disk.waiting() }
        .map(|request| match request {
            Request::Run(DiskAction::Append(entries)) => {
                entries.iter().map(|entry| entry.header().body_len).sum()
            }
            _ => 0,
        })
        .sum();
    assert!((50 << 20..75 << 20).contains(&waiting), "{waiting}");
    let now = many.now;
    many.node(slow).on_disk(Done::Settled, now);
    many.follow(slow);
    many.pass(3 * LEASE);
    assert_eq!(many.applied(slow), last);
}
