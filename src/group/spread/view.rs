//! What the daemon's words about a view mean to the members of a group.

use super::wire::{Endian, GroupId, Membership, MessageType, Name};
use crate::group::{MemberId, View, ViewId};

/// The view that a membership message tells of, to a member of it that has been in the last one, or
/// has just come.
pub(super) fn view(
    me: Name,
    is_new: bool,
    caused_by: MessageType,
    members: &[Name],
    membership: &Membership,
) -> View {
    // Whoever is new has seen nothing that others have.
    let together = match is_new {
        true => vec![me],
        false => together(me, caused_by, members, membership),
    };
    View {
        id: view_id(membership.id),
        members: members.iter().map(member_id).collect(),
        together: together.iter().map(member_id).collect(),
        cause: cause(caused_by),
    }
}

/// The name of a session, for others: as it is, since bodies are addressed by it. A daemon's names
/// are ASCII; what else may come is escaped.
pub(super) fn member_id(name: &Name) -> MemberId {
    match str::from_utf8(name.as_bytes()) {
        Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => MemberId::new(text),
        _ => MemberId::new(&name.to_string()),
    }
}

fn view_id(id: GroupId) -> ViewId {
    let mut bytes = [0; 20];
    bytes[..GroupId::LEN].copy_from_slice(&id.encode(Endian::Big));
    ViewId(bytes)
}

/// Who came from our last view with us. After a change by one member the set names that one.
fn together(
    me: Name,
    caused_by: MessageType,
    names: &[Name],
    membership: &Membership,
) -> Vec<Name> {
    let without = |gone: &[Name]| -> Vec<Name> {
        let stayed = names.iter().filter(|name| !gone.contains(name));
        stayed.copied().collect()
    };
    let together = if caused_by.intersects(MessageType::CAUSED_BY_JOIN) {
        without(membership.own_set())
    } else if caused_by.intersects(MessageType::CAUSED_BY_NETWORK) {
        let own = membership.own_set();
        let came = names.iter().filter(|name| own.contains(name));
        came.copied().collect()
    } else {
        names.to_vec()
    };
    match together.contains(&me) {
        true => together,
        false => vec![me],
    }
}

/// What has changed, for people.
fn cause(caused_by: MessageType) -> &'static str {
    if caused_by.intersects(MessageType::CAUSED_BY_JOIN) {
        "a join"
    } else if caused_by.intersects(MessageType::CAUSED_BY_LEAVE) {
        "a leave"
    } else if caused_by.intersects(MessageType::CAUSED_BY_DISCONNECT) {
        "a disconnect"
    } else if caused_by.intersects(MessageType::CAUSED_BY_NETWORK) {
        "a change of the network"
    } else {
        "a change"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: MessageType = MessageType::CAUSED_BY_NETWORK;

    fn name(text: &str) -> Name {
        Name::private(text.as_bytes(), b"host").unwrap()
    }

    fn names(text: &str) -> Vec<Name> {
        text.split_whitespace().map(name).collect()
    }

    /// Who came with alice, in her own words; sets are separated by bars.
    fn with_alice(caused_by: MessageType, members: &str, sets: &str, own: usize) -> Vec<String> {
        let membership = Membership {
            id: GroupId([1, 2, 3]),
            sets: sets.split('|').map(names).collect(),
            own,
        };
        let view = view(
            name("alice"),
            false,
            caused_by,
            &names(members),
            &membership,
        );
        let user = |id: &MemberId| id.as_str().split('#').nth(1).unwrap().to_owned();
        view.together.iter().map(user).collect()
    }

    #[test]
    fn all_but_the_joiner_have_been_together() {
        let join = MessageType::CAUSED_BY_JOIN;
        let together = with_alice(join, "alice bob carol", "carol", 0);
        assert_eq!(together, ["alice", "bob"]);
    }

    #[test]
    fn all_who_remain_have_been_together() {
        for cause in [
            MessageType::CAUSED_BY_LEAVE,
            MessageType::CAUSED_BY_DISCONNECT,
        ] {
            let together = with_alice(cause, "alice bob", "carol", 0);
            assert_eq!(together, ["alice", "bob"]);
        }
    }

    #[test]
    fn after_a_merge_each_has_been_together_with_its_own_part() {
        let together = with_alice(NETWORK, "alice bob carol dave", "carol dave|alice bob", 1);
        assert_eq!(together, ["alice", "bob"]);
    }

    #[test]
    fn who_left_at_the_same_time_is_not_counted() {
        let together = with_alice(NETWORK, "alice carol", "alice bob|carol", 0);
        assert_eq!(together, ["alice"]);
    }

    #[test]
    fn a_set_without_us_is_not_ours() {
        let together = with_alice(NETWORK, "alice bob", "bob|alice", 0);
        assert_eq!(together, ["alice"]);
    }

    #[test]
    fn who_is_new_has_been_together_with_nobody() {
        let membership = Membership {
            id: GroupId([1, 2, 3]),
            sets: vec![names("alice bob")],
            own: 0,
        };
        let (me, members) = (name("alice"), names("alice bob"));
        let view = view(me, true, NETWORK, &members, &membership);
        assert_eq!(view.together, [member_id(&me)]);
        assert_eq!(view.members.len(), 2);
        assert_eq!(view.id.to_string(), "000000010000000200000003");
    }
}
