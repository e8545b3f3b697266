//! What can be done from a state on when faults have stopped.

use crate::protocol::Next;
use crate::rules::{Property, Rules};
use crate::state::{Role, State, VOTERS};

/// From each state, any two voters can commit a client entry while the third is silent: with
/// either of them as the candidate of a new epoch, and in the epoch that there is if one of them is
/// in office and the other has promised nothing higher.
pub(crate) fn any_two_can_commit(state: &State, rules: &Rules) -> Option<Property> {
    let mut rules = *rules;
    rules.epochs += 1;
    rules.clients = state.clients + 1;
    for lead in 0..VOTERS {
        for other in (0..VOTERS).filter(|other| *other != lead) {
            let elected = in_a_new_epoch(state, &rules, lead, other);
            if elected.is_none_or(|state| commit(&state, &rules, lead, other).is_none()) {
                return Some(Property::Liveness);
            }
            let Some(state) = in_this_epoch(state, &rules, lead, other) else {
                continue;
            };
            if commit(&state, &rules, lead, other).is_none() {
                return Some(Property::Liveness);
            }
        }
    }
    None
}

fn in_a_new_epoch(state: &State, rules: &Rules, lead: usize, other: usize) -> Option<State> {
    let epoch = rules.epochs;
    let state = sound(state.claim(rules, lead, epoch))?;
    let state = sound(state.promise(rules, other, epoch))?;
    let state = sound(state.fetch(rules, lead, other)).unwrap_or(state);
    sound(state.take_office(rules, lead))
}

/// Nothing if this is not to be asked for.
fn in_this_epoch(state: &State, rules: &Rules, lead: usize, other: usize) -> Option<State> {
    let (primary, replica) = (&state.replicas[lead], &state.replicas[other]);
    let epoch = primary.office;
    let in_office = primary.role == Role::Primary && primary.promised == epoch;
    if !in_office || replica.promised > epoch {
        return None;
    }
    // A replica that comes late takes the epoch when it hears of it.
    Some(sound(state.promise(rules, other, epoch)).unwrap_or(*state))
}

/// First all that the primary has, then a client's entry.
fn commit(state: &State, rules: &Rules, lead: usize, other: usize) -> Option<State> {
    let state = replicate(state, rules, lead, other)?;
    let state = sound(state.propose(rules, lead, 0))?;
    replicate(&state, rules, lead, other)
}

fn replicate(state: &State, rules: &Rules, lead: usize, other: usize) -> Option<State> {
    let (epoch, len) = (state.replicas[lead].office, state.replicas[lead].log.len());
    let state = sound(state.append(rules, other, epoch, len)).unwrap_or(*state);
    let state = sound(state.sync(rules, lead)).unwrap_or(state);
    let state = sound(state.sync(rules, other)).unwrap_or(state);
    let state = sound(state.advance(rules, lead, len)).unwrap_or(state);
    let state = sound(state.commit(rules, other, epoch)).unwrap_or(state);
    let learnt = |node: usize| state.replicas[node].commit_mark == len;
    let committed = state.committed.starts_with(state.replicas[lead].log);
    (learnt(lead) && learnt(other) && committed).then_some(state)
}

fn sound(next: Option<Next>) -> Option<State> {
    next.filter(|next| next.broken.is_none())
        .map(|next| next.state)
}
