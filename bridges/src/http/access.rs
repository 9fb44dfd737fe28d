//! Who asks, and what they may do.
//!
//! On a Unix socket the kernel tells the user and group of the process that connected (SO_PEERCRED). Allowed are the user that
//! hookbus runs as, root, and members of one group that the configuration names. The permissions of the socket file keep out
//! most others already; this is asked all the same, since a file's mode can be changed by accident and a socket made by
//! systemd has whatever mode its unit says.
//!
//! On TCP each route says what it needs ([`Right`](super::Right)).

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::net::unix::UCred;

use super::problem::Problem;

/// Who is let in at the Unix socket, besides the user that this process runs as and root.
#[derive(Clone, Debug, Default)]
pub struct Access {
    group: Option<(String, Gid)>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A process of this machine that may do everything.
    Local,
    /// A process of this machine that may do nothing.
    Stranger {
        /// Its user.
        uid: u32,
    },
    /// Somebody on TCP. What they may do depends on what they show.
    Remote {
        /// Whether they have shown a certificate of the authority for clients, which lets do everything.
        certified: bool,
    },
}

impl Access {
    /// Lets in this user and root.
    pub fn own_user() -> Self {
        Access::default()
    }

    /// Lets in the members of a group, too, primary or supplementary.
    ///
    /// # Errors
    /// When there is no such group on this machine.
    pub fn with_group(self, name: &str) -> Result<Self, String> {
        match Group::from_name(name) {
            Ok(Some(group)) => Ok(Access { group: Some((name.to_owned(), group.gid)) }),
            Ok(None) => Err(format!("there is no group `{name}` on this machine; make it with `groupadd {name}`")),
            Err(e) => Err(format!("the group `{name}` cannot be looked up: {e}")),
        }
    }

    /// The number of the group, for the socket file.
    pub fn gid(&self) -> Option<u32> {
        self.group.as_ref().map(|(_, gid)| gid.as_raw())
    }

    /// Decides about a process that connected.
    pub fn caller(&self, credentials: &UCred) -> Caller {
        let uid = Uid::from_raw(credentials.uid());
        let gid = Gid::from_raw(credentials.gid());
        let allowed = uid.is_root()
            || uid == Uid::effective()
            || self.group.as_ref().is_some_and(|(_, group)| *group == gid || is_member(uid, gid, *group));
        if allowed { Caller::Local } else { Caller::Stranger { uid: uid.as_raw() } }
    }

    /// What a stranger is told.
    pub(crate) fn refusal(&self, uid: u32) -> Problem {
        let who = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let who =
            who.map_or_else(|| format!("the user with the number {uid}"), |user| format!("the user `{}`", user.name));
        let what = match &self.group {
            Some((group, _)) => format!("they become a member of the group `{group}` and log in again"),
            None => "[http] group in hookbus.toml names a group that they are a member of".to_owned(),
        };
        Problem::forbidden(format!("{who} may not use this socket until {what}"))
    }
}

/// Whether a user belongs to a group by the group database. Membership that only the process has (newgrp, setgroups) isn't
/// seen here, save its primary group.
fn is_member(uid: Uid, primary: Gid, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, primary).is_ok_and(|groups| groups.contains(&group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_own_user_is_let_in() {
        let (one, _other) = tokio::net::UnixStream::pair().expect("a pair of sockets");
        assert_eq!(Access::own_user().caller(&one.peer_cred().expect("credentials")), Caller::Local);
    }

    #[test]
    fn a_group_that_is_not_there_is_told() {
        let error = Access::own_user().with_group("no-such-group").expect_err("there is none");
        assert!(error.contains("`no-such-group`") && error.contains("groupadd"), "{error}");
        assert_eq!(Access::own_user().with_group("root").expect("everybody has it").gid(), Some(0));
    }

    #[test]
    fn root_belongs_to_its_group_and_not_to_any() {
        assert!(is_member(Uid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)));
        assert!(!is_member(Uid::from_raw(0), Gid::from_raw(0), Gid::from_raw(54_321)));
    }

    #[test]
    fn a_stranger_is_told_what_to_do() {
        let told = Access::own_user().refusal(4_000_000_000);
        assert!(told.detail().contains("4000000000") && told.detail().contains("[http] group"), "{told:?}");
    }
}
