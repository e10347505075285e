//! What somebody may do.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, LazyLock},
};

use serde::{Serialize, Serializer};
use wsc_protocol::MAX_ID_LEN;

/// One thing that can be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Permission {
    /// `read:message`: known, grants nothing (who is in a room reads it).
    ReadMessage,
    /// `send:message`: to rooms and to users.
    SendMessage,
    /// `create:room`.
    CreateRoom,
    /// `delete:room`.
    DeleteRoom,
    /// `join:room`.
    JoinRoom,
    /// `leave:room`: known, grants nothing (everybody may leave).
    LeaveRoom,
    /// `admin:room`: members of rooms, and rooms over HTTP.
    AdminRoom,
    /// `admin:system`: implies every other.
    AdminSystem,
}

impl Permission {
    /// Every permission, in declaration order: `ALL[p as usize] == p`.
    pub const ALL: [Self; 8] = [
        Self::ReadMessage,
        Self::SendMessage,
        Self::CreateRoom,
        Self::DeleteRoom,
        Self::JoinRoom,
        Self::LeaveRoom,
        Self::AdminRoom,
        Self::AdminSystem,
    ];

    /// The name in tokens and settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadMessage => "read:message",
            Self::SendMessage => "send:message",
            Self::CreateRoom => "create:room",
            Self::DeleteRoom => "delete:room",
            Self::JoinRoom => "join:room",
            Self::LeaveRoom => "leave:room",
            Self::AdminRoom => "admin:room",
            Self::AdminSystem => "admin:system",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }

    /// Whether a resource can narrow it: the room permissions and `send:message`.
    fn takes_resource(self) -> bool {
        !matches!(self, Self::ReadMessage | Self::AdminSystem)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Permission {
    type Err = UnknownPermission;

    fn from_str(text: &str) -> Result<Self, UnknownPermission> {
        Self::ALL.into_iter().find(|p| p.as_str() == text).ok_or(UnknownPermission)
    }
}

/// The text names no [`Permission`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the name of a permission")]
pub struct UnknownPermission;

/// Everything that somebody may do. One pointer; cloning shares what is behind it.
///
/// A permission is held for everything (`join:room`, or `join:room:*`), or for the resources that its patterns name:
/// a room id, or `@` and a user id in `send:message`. A `*` at a pattern's end stands for any rest, so `@*` is every
/// user. Patterns of rooms and of users never cover each other.
#[derive(Clone, PartialEq, Eq)]
pub struct Permissions(Arc<Grants>);

#[derive(Default, PartialEq, Eq)]
struct Grants {
    /// One bit for each permission that is held for everything.
    whole: u8,
    /// The narrowed ones, sorted, without those that `whole` covers.
    narrowed: Box<[Narrowed]>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Narrowed {
    permission: Permission,
    /// Of a user (written with `@`), else of a room.
    of_user: bool,
    /// The text before the `*`, or the whole name.
    name: Box<str>,
    is_prefix: bool,
}

impl Permissions {
    /// Nothing at all.
    pub fn none() -> Self {
        static NONE: LazyLock<Permissions> = LazyLock::new(|| Permissions(Arc::default()));
        NONE.clone()
    }

    /// Everything but `admin:room` and `admin:system`: what a connection holds while authentication is off.
    pub fn all_but_admin() -> Self {
        static ALL: LazyLock<Permissions> = LazyLock::new(|| {
            let admin = Permission::AdminRoom.bit() | Permission::AdminSystem.bit();
            Permissions(Arc::new(Grants { whole: !admin, narrowed: Box::default() }))
        });
        ALL.clone()
    }

    /// Everything: `admin:system`.
    pub fn all() -> Self {
        Self(Arc::new(Grants { whole: Permission::AdminSystem.bit(), narrowed: Box::default() }))
    }

    /// Reads permissions as tokens and settings write them: a name, or a name with `:` and a pattern.
    ///
    /// # Errors
    ///
    /// The first text that is no permission, and why.
    pub fn parse<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self, InvalidPermission> {
        let mut whole = 0;
        let mut narrowed = Vec::new();
        for text in texts {
            match parse_one(text.as_ref())? {
                Grant::Whole(permission) => whole |= permission.bit(),
                Grant::Narrowed(grant) => narrowed.push(grant),
            }
        }
        narrowed.retain(|n: &Narrowed| whole & n.permission.bit() == 0);
        narrowed.sort();
        narrowed.dedup();
        if whole == 0 && narrowed.is_empty() {
            return Ok(Self::none());
        }
        Ok(Self(Arc::new(Grants { whole, narrowed: narrowed.into() })))
    }

    /// Reads permissions and leaves out what is none: tokens of an identity provider carry scopes of other programs too.
    pub fn parse_known<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Self {
        let known = texts.into_iter().filter(|text| parse_one(text.as_ref()).is_ok());
        Self::parse(known).unwrap_or_else(|_| Self::none())
    }

    /// Whether `permission` is held for `resource`, written as patterns write it: a room id, or `@` and a user id
    /// for direct messages. `None` asks for no resource in particular, such as a list of all rooms: only who holds
    /// the permission for everything may.
    ///
    /// A room id may itself begin with `@`; [`allows_room`](Self::allows_room) and
    /// [`allows_direct`](Self::allows_direct) know which of the two they are asked about.
    pub fn allows(&self, permission: Permission, resource: Option<&str>) -> bool {
        match (permission, resource.map(|r| (r, r.strip_prefix('@')))) {
            (_, None) => self.holds_whole(permission),
            (Permission::SendMessage, Some((_, Some(user_id)))) => self.allows_direct(user_id),
            (_, Some((room_id, _))) => self.allows_room(permission, room_id),
        }
    }

    /// Whether `permission` is held for this room.
    pub fn allows_room(&self, permission: Permission, room_id: &str) -> bool {
        self.covers(permission, false, room_id)
    }

    /// Whether direct messages to this user are allowed.
    pub fn allows_direct(&self, user_id: &str) -> bool {
        self.covers(Permission::SendMessage, true, user_id)
    }

    /// Whether `permission` is held for anything at all.
    pub fn holds_some(&self, permission: Permission) -> bool {
        self.holds_whole(permission) || self.0.narrowed.iter().any(|n| n.permission == permission)
    }

    /// The permissions as tokens write them, each once, in a fixed order.
    pub fn to_strings(&self) -> Vec<String> {
        self.texts().collect()
    }

    fn holds_whole(&self, permission: Permission) -> bool {
        self.0.whole & (permission.bit() | Permission::AdminSystem.bit()) != 0
    }

    fn covers(&self, permission: Permission, of_user: bool, name: &str) -> bool {
        self.holds_whole(permission)
            || self.0.narrowed.iter().any(|n| {
                n.permission == permission
                    && n.of_user == of_user
                    && if n.is_prefix { name.starts_with(&*n.name) } else { *n.name == *name }
            })
    }

    fn texts(&self) -> impl Iterator<Item = String> {
        let whole = Permission::ALL.into_iter().filter(|p| self.0.whole & p.bit() != 0);
        whole.map(|p| p.as_str().to_owned()).chain(self.0.narrowed.iter().map(ToString::to_string))
    }
}

impl fmt::Debug for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.texts()).finish()
    }
}

/// A list of texts, as in the reply to `authenticate`.
impl Serialize for Permissions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.texts())
    }
}

impl fmt::Display for Narrowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = if self.of_user { "@" } else { "" };
        let rest = if self.is_prefix { "*" } else { "" };
        write!(f, "{}:{user}{}{rest}", self.permission, self.name)
    }
}

enum Grant {
    Whole(Permission),
    Narrowed(Narrowed),
}

fn parse_one(text: &str) -> Result<Grant, InvalidPermission> {
    let invalid = |problem| Err(InvalidPermission { text: text.to_owned(), problem });
    // Names have one colon; whatever follows a second one is the resource, colons included.
    let resource_at = text.match_indices(':').nth(1).map(|(at, _)| at);
    let (name, resource) = match resource_at {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let Ok(permission) = name.parse::<Permission>() else {
        return invalid("no such permission");
    };
    let Some(resource) = resource else {
        return Ok(Grant::Whole(permission));
    };
    if !permission.takes_resource() {
        return invalid("it takes no resource");
    }
    if resource == "*" {
        return Ok(Grant::Whole(permission));
    }
    let user = resource.strip_prefix('@').filter(|_| permission == Permission::SendMessage);
    let pattern = user.unwrap_or(resource);
    let (name, is_prefix) = match pattern.strip_suffix('*') {
        Some(prefix) => (prefix, true),
        None => (pattern, false),
    };
    if pattern.is_empty() {
        return invalid("the resource is empty");
    }
    if name.contains('*') {
        return invalid("a `*` stands only at the end");
    }
    if name.len() > MAX_ID_LEN || name.chars().any(char::is_control) {
        return invalid("the resource is no id");
    }
    Ok(Grant::Narrowed(Narrowed { permission, of_user: user.is_some(), name: name.into(), is_prefix }))
}

/// A text that is no permission.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("permission {text:?}: {problem}")]
pub struct InvalidPermission {
    text: String,
    problem: &'static str,
}

impl InvalidPermission {
    /// The text as it was given.
    pub fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Permission::*;

    fn parse(texts: &[&str]) -> Permissions {
        Permissions::parse(texts).unwrap()
    }

    #[test]
    fn names_and_positions_agree() {
        for (position, permission) in Permission::ALL.into_iter().enumerate() {
            assert_eq!(permission as usize, position);
            assert_eq!(permission.as_str().parse(), Ok(permission));
        }
    }

    #[test]
    fn a_connection_holds_one_pointer() {
        assert_eq!(size_of::<Permissions>(), size_of::<usize>());
        // Most connections hold the same permissions; they share them.
        assert!(Arc::ptr_eq(&Permissions::all_but_admin().0, &Permissions::all_but_admin().0));
        assert!(Arc::ptr_eq(&Permissions::none().0, &Permissions::parse([""; 0]).unwrap().0));
    }

    #[test]
    fn without_authentication_everything_but_the_admin_ones_is_held() {
        let all = Permissions::all_but_admin();
        for permission in Permission::ALL {
            let admin = matches!(permission, AdminRoom | AdminSystem);
            assert_eq!(all.allows(permission, None), !admin, "{permission}");
            assert_eq!(all.allows(permission, Some("r1")), !admin, "{permission}");
        }
        assert!(all.allows_direct("bob"));
    }

    #[test]
    fn nothing_allows_nothing() {
        for permission in Permission::ALL {
            assert!(!Permissions::none().allows(permission, None));
            assert!(!Permissions::none().allows(permission, Some("r1")));
            assert!(!Permissions::none().holds_some(permission));
        }
        assert!(!Permissions::none().allows_direct("bob"));
    }

    #[test]
    fn admin_system_implies_all_and_admin_room_does_not() {
        let admin = parse(&["admin:system"]);
        assert_eq!(admin, Permissions::all());
        for permission in Permission::ALL {
            assert!(admin.allows(permission, None) && admin.allows(permission, Some("r1")), "{permission}");
        }
        assert!(admin.allows_direct("bob"));
        let rooms = parse(&["admin:room"]);
        assert!(rooms.allows(AdminRoom, None));
        assert!(!rooms.allows(JoinRoom, None) && !rooms.allows(AdminSystem, None));
    }

    #[test]
    fn a_resource_narrows() {
        let may = parse(&["join:room:support-*", "join:room:lobby", "send:message:@bob", "send:message:lobby"]);
        for (room, expected) in [
            ("support-1", true),
            ("support-", true),
            ("support", false),
            ("lobby", true),
            ("lobby2", false),
            ("x", false),
        ] {
            assert_eq!(may.allows(JoinRoom, Some(room)), expected, "{room}");
        }
        assert!(may.allows(SendMessage, Some("@bob")) && may.allows_direct("bob"));
        assert!(!may.allows_direct("bobby") && !may.allows_direct("lobby"));
        assert!(!may.allows(SendMessage, Some("bob")));
        // Nothing in particular is more than the patterns name.
        assert!(!may.allows(JoinRoom, None));
        assert!(may.holds_some(JoinRoom) && !may.holds_some(CreateRoom));
    }

    #[test]
    fn rooms_and_users_are_kept_apart() {
        // A room may be called `@bob`: whoever may write to bob may not write to that room, and the reverse.
        let to_user = parse(&["send:message:@bob"]);
        assert!(to_user.allows_direct("bob") && !to_user.allows_room(SendMessage, "@bob"));
        assert!(!parse(&["send:message:b*"]).allows_direct("bob"));
        let every_user = parse(&["send:message:@*"]);
        assert!(every_user.allows_direct("bob") && !every_user.allows_room(SendMessage, "r1"));
        // Only in send:message does the sign mean a user.
        assert!(parse(&["join:room:@bob"]).allows(JoinRoom, Some("@bob")));
    }

    #[test]
    fn bad_texts_are_refused_by_name() {
        for (text, part) in [
            ("", "no such"),
            ("join", "no such"),
            ("join:rooms", "no such"),
            ("JOIN:ROOM", "no such"),
            ("*", "no such"),
            ("join:*", "no such"),
            ("join:room:", "empty"),
            ("send:message:@", "empty"),
            ("join:room:a*b", "at the end"),
            ("join:room:**", "at the end"),
            ("admin:system:x", "no resource"),
            ("read:message:*", "no resource"),
            ("join:room:a\nb", "no id"),
        ] {
            let error = Permissions::parse(["join:room", text]).unwrap_err();
            assert_eq!(error.text(), text);
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn what_is_no_permission_grants_nothing_and_spoils_nothing() {
        let may =
            Permissions::parse_known(["openid", "join:room", "send:message:a*b", "ADMIN:SYSTEM", "admin:system:x"]);
        assert_eq!(may, parse(&["join:room"]));
        assert_eq!(Permissions::parse_known(["openid"]), Permissions::none());
    }

    #[test]
    fn the_list_comes_back_tidy() {
        let may = parse(&[
            "send:message:b",
            "send:message:a:b*",
            "join:room:*",
            "join:room:x",
            "send:message:@u",
            "send:message:b",
        ]);
        assert_eq!(may.to_strings(), ["join:room", "send:message:a:b*", "send:message:b", "send:message:@u"]);
        assert_eq!(format!("{:?}", parse(&["create:room"])), r#"["create:room"]"#);
    }

    fn text() -> impl Strategy<Value = String> {
        (0..Permission::ALL.len(), proptest::option::of("@?[a-z:@ü.]{0,6}\\*?"))
            .prop_map(|(p, resource)| match resource {
                Some(resource) => format!("{}:{resource}", Permission::ALL[p]),
                None => Permission::ALL[p].to_string(),
            })
            .prop_filter("valid", |text| Permissions::parse([text]).is_ok())
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(texts in proptest::collection::vec(text(), 0..6)) {
            let may = Permissions::parse(&texts).unwrap();
            prop_assert_eq!(Permissions::parse(may.to_strings()).unwrap(), may);
        }

        #[test]
        fn more_texts_never_allow_less(
            texts in proptest::collection::vec(text(), 1..6), room in "[a-z:@]{1,4}", p in 0..8_usize,
        ) {
            let permission = Permission::ALL[p];
            let all = Permissions::parse(&texts).unwrap();
            let one_by_one: Vec<_> = texts.iter().map(|t| Permissions::parse([t]).unwrap()).collect();
            let any = |f: &dyn Fn(&Permissions) -> bool| one_by_one.iter().any(f);
            prop_assert_eq!(all.allows_room(permission, &room), any(&|m| m.allows_room(permission, &room)));
            prop_assert_eq!(all.allows_direct(&room), any(&|m| m.allows_direct(&room)));
            prop_assert_eq!(all.allows(permission, None), any(&|m| m.allows(permission, None)));
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = Permissions::parse([text]);
        }
    }
}
