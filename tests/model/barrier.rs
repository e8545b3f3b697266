//! The barrier at a change of the view: in a view nobody sends regular messages before all of its
//! members have said that they are done with recovery (I15). A model by itself, since the core
//! rules do not rest on it.
//!
//! Views come to each member when they come, and an `Unblock` may be taken late, in a later view.
//! A member that is excluded because it takes too long is not modelled.

use std::collections::BTreeSet;

const MEMBERS: usize = 3;
const ALL: u8 = (1 << MEMBERS) - 1;
const VIEWS: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// An `Unblock` does not say of which view it is.
    StaleUnblock,
    /// What was heard in a view is not forgotten at the next.
    HeardKept,
    /// A member declares itself and waits for nobody.
    OthersNotAwaited,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    view: u8,
    /// Members whose `Unblock` it has counted in this view, a bit for each.
    heard: u8,
    /// Views in which it has sent its own, a bit for each.
    unblocked: u8,
}

type State = [Member; MEMBERS];

/// What an exploration came to.
struct Report {
    states: usize,
    /// Somebody sent regular messages before it was allowed to.
    broken: bool,
    /// Views in which regular messages flowed, a bit for each.
    flowed: u8,
}

fn explore(mutant: Option<Mutant>) -> Report {
    let start = State::default();
    let mut seen = BTreeSet::from([start]);
    let mut waiting = vec![start];
    let (mut broken, mut flowed) = (false, 0);
    while let Some(state) = waiting.pop() {
        for (node, member) in state.iter().enumerate() {
            let awaited = match mutant {
                Some(Mutant::OthersNotAwaited) => 1 << node,
                _ => ALL,
            };
            if member.heard & awaited == awaited {
                let view = 1 << member.view;
                broken |= state.iter().any(|other| other.unblocked & view == 0);
                flowed |= view;
            }
            for next in steps(&state, node, mutant) {
                if seen.insert(next) {
                    waiting.push(next);
                }
            }
        }
    }
    Report {
        states: seen.len(),
        broken,
        flowed,
    }
}

/// What a member can do next: be told the next view, be done with recovery, hear of another.
fn steps(state: &State, node: usize, mutant: Option<Mutant>) -> Vec<State> {
    let mut steps = Vec::new();
    let member = state[node];
    let mut step = |changed: Member| {
        let mut next = *state;
        next[node] = changed;
        steps.push(next);
    };
    if member.view < VIEWS {
        let heard = match mutant {
            Some(Mutant::HeardKept) => member.heard,
            _ => 0,
        };
        step(Member {
            view: member.view + 1,
            heard,
            ..member
        });
    }
    if member.view > 0 {
        step(Member {
            heard: member.heard | 1 << node,
            unblocked: member.unblocked | 1 << member.view,
            ..member
        });
    }
    for (from, other) in state.iter().enumerate().filter(|(from, _)| *from != node) {
        // Nothing comes before the view that it was sent in.
        for view in (1..=member.view).filter(|view| other.unblocked & (1 << view) != 0) {
            if view == member.view || mutant == Some(Mutant::StaleUnblock) {
                step(Member {
                    heard: member.heard | 1 << from,
                    ..member
                });
            }
        }
    }
    steps
}

#[test]
fn nobody_sends_before_all_of_the_view_have_unblocked() {
    let report = explore(None);
    println!("barrier: {} states", report.states);
    assert!(!report.broken);
    // It does not hold because nothing ever flows.
    assert_eq!(report.flowed, 0b1110);
}

#[test]
fn every_mutant_of_the_barrier_is_found() {
    for mutant in [
        Mutant::StaleUnblock,
        Mutant::HeardKept,
        Mutant::OthersNotAwaited,
    ] {
        assert!(explore(Some(mutant)).broken, "{mutant:?} breaks nothing");
    }
}
