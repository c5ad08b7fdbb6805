//! Pure: what the judges of a member's file and of a template share: complaints about one file, gathered in their order; and for tests, a
//! node and the way to spoil a sound file in one place after the other.

use pgleap_proto::agent::Complaint;

/// Gathers what is wrong with a file.
pub(super) struct Judge<'f> {
    path: &'f str,
    found: Vec<Complaint>,
}

impl<'f> Judge<'f> {
    pub(super) fn new(path: &'f str) -> Self {
        Judge { path, found: Vec::new() }
    }

    pub(super) fn say(&mut self, what: String, cure: impl Into<String>) {
        self.found.push(Complaint { what: format!("{}: {what}", self.path), cure: cure.into() });
    }

    pub(super) fn found(self) -> Vec<Complaint> {
        self.found
    }
}

/// The port at the end of `host:port`; none when there is none.
pub(super) fn port(place: &str) -> Option<u32> {
    place.rsplit_once(':').and_then(|(_, port)| port.trim().parse().ok())
}

#[cfg(test)]
pub(super) mod testing {
    use pgleap_proto::node::Node;

    use super::*;

    /// The new node, as the seed of the old major or as itself.
    pub(crate) fn node(major: u32) -> Node {
        Node {
            name: "n1".into(),
            address: "10.0.0.3".into(),
            port: 5433,
            socket_dir: "/run/ledger".into(),
            data_dir: format!("/srv/{major}/ledger"),
            bin_dir: format!("/usr/lib/postgresql/{major}/bin"),
            superuser: "admin".into(),
            major,
            ..Node::default()
        }
    }

    /// Each edit of a sound file (what stands there, what instead) is one complaint, with these words in it and in its cure.
    #[track_caller]
    pub(crate) fn each_edit_is_told(
        path: &str,
        sound: &str,
        judged: impl Fn(&str) -> Vec<Complaint>,
        edits: &[(&str, &str, &str, &str)],
    ) {
        for (old, new, what, cure) in edits {
            assert!(sound.contains(old), "{old}");
            let found = judged(&sound.replacen(old, new, 1));
            let [one] = found.as_slice() else { panic!("{new}: {found:#?}") };
            assert!(one.what.starts_with(&format!("{path}: ")) && one.what.contains(what), "{new}: {one:?}");
            assert!(one.cure.contains(cure), "{new}: {one:?}");
        }
    }
}
