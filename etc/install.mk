# `make install` and `make uninstall`: the relay as a service of this machine. docs/systemd.md says how to go on.
#
# DESTDIR=/some/where stages everything there; the result is complete once that tree is copied, or packaged, to /.
# The relay gets a virtual environment of its own, which names its final place, never DESTDIR.

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
# Not below PREFIX: systemd looks into few places. Packages say UNITDIR=/usr/lib/systemd/system SYSUSERSDIR=/usr/lib/sysusers.d.
UNITDIR ?= /etc/systemd/system
SYSUSERSDIR ?= /etc/sysusers.d
DOCDIR ?= $(PREFIX)/share/doc/fwdrelay
# What the virtual environment is made from. The service's user must be able to reach it.
SYSTEM_PYTHON ?= /usr/bin/python3

install_root := $(patsubst %/,%,$(abspath $(DESTDIR)))
install_venv = $(PREFIX)/lib/fwdrelay
install_ctl = $(PREFIX)/bin/fwdrelayctl
# Where shells look for completions of fwdrelayctl.
install_bash = $(PREFIX)/share/bash-completion/completions/fwdrelayctl
install_zsh = $(PREFIX)/share/zsh/site-functions/_fwdrelayctl
install_fish = $(PREFIX)/share/fish/vendor_completions.d/fwdrelayctl.fish
install_units = fwdrelay.service fwdrelay@.service fwdrelay.socket
install_examples = $(notdir $(wildcard $(install_source)/etc/fwdrelay/examples/*))
install_source := $(patsubst %/etc/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))

# The files in etc/ name the default places, so that they can also be copied as they are.
install_text = sed -e 's|/usr/local/lib/fwdrelay|$(install_venv)|g' -e 's|/usr/local/share/doc/fwdrelay|$(DOCDIR)|g' \
    -e 's|/usr/local/bin/fwdrelayctl|$(install_ctl)|g' -e 's|/etc/fwdrelay|$(SYSCONFDIR)/fwdrelay|g'

.PHONY: install install-venv install-ctl install-files uninstall

install: install-venv install-ctl install-files ## make a service of it on this machine, or below DESTDIR; PREFIX, SYSTEM_PYTHON
ifeq ($(install_root),)
	@echo 'Installed. What to relay is said in $(SYSCONFDIR)/fwdrelay/fwdrelay.env. Then, as root:'
	@echo '    systemd-sysusers && systemctl daemon-reload && systemctl enable --now fwdrelay'
endif

# -I: neither this folder nor PYTHONPATH has a part in it. compileall: what pip compiles would name DESTDIR.
# getPlugins: writes Twisted's plugin cache, which the service cannot.
install-venv: venv = $(install_root)$(install_venv)
install-venv:
	@case "$$('$(SYSTEM_PYTHON)' -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')/" in \
	    /home/*|/root/*) echo >&2 'make install: $(SYSTEM_PYTHON) lives in a home directory, where the service cannot' \
	        'reach it; name another with SYSTEM_PYTHON=/usr/bin/python3'; exit 1;; esac
	umask 022 && '$(SYSTEM_PYTHON)' -m venv '$(venv)'
	umask 022 && '$(venv)/bin/python' -I -m pip install --quiet --disable-pip-version-check --no-compile '$(install_source)'
	umask 022 && '$(venv)/bin/python' -I -m compileall -q -f $(if $(install_root),-s '$(install_root)' -p /) '$(venv)/lib'
	umask 022 && '$(venv)/bin/python' -I -c 'from twisted.plugin import IPlugin, getPlugins; list(getPlugins(IPlugin))'
ifneq ($(install_root),)
	grep -rlIZF '$(venv)' '$(venv)/bin' '$(venv)/pyvenv.cfg' | xargs -0r sed -i 's|$(venv)|$(install_venv)|g'
endif

# The link is relative, so it holds in DESTDIR, too.
install-ctl: python = $(install_root)$(install_venv)/bin/python
install-ctl: install-venv
	umask 022 && mkdir -p $(foreach file,$(install_ctl) $(install_bash) $(install_zsh) $(install_fish),'$(install_root)$(dir $(file))')
	ln -sfn ../lib/fwdrelay/bin/fwdrelayctl '$(install_root)$(install_ctl)'
	umask 022 && '$(python)' -I -m fwdrelay.ctl completion bash > '$(install_root)$(install_bash)'
	umask 022 && '$(python)' -I -m fwdrelay.ctl completion zsh > '$(install_root)$(install_zsh)'
	umask 022 && '$(python)' -I -m fwdrelay.ctl completion fish > '$(install_root)$(install_fish)'

install-files: install_env = $(install_root)$(SYSCONFDIR)/fwdrelay/fwdrelay.env
install-files:
	umask 022 && mkdir -p '$(install_root)$(UNITDIR)' '$(install_root)$(SYSUSERSDIR)' '$(dir $(install_env))' \
	    '$(install_root)$(DOCDIR)/examples'
	umask 022 && for unit in $(install_units); do \
	    $(install_text) "$(install_source)/etc/systemd/system/$$unit" > "$(install_root)$(UNITDIR)/$$unit" || exit; done
	umask 022 && $(install_text) '$(install_source)/etc/sysusers.d/fwdrelay.conf' > '$(install_root)$(SYSUSERSDIR)/fwdrelay.conf'
	umask 022 && $(install_text) '$(install_source)/docs/systemd.md' > '$(install_root)$(DOCDIR)/systemd.md'
	umask 022 && $(install_text) '$(install_source)/etc/fwdrelay/fwdrelay.env' > '$(install_root)$(DOCDIR)/fwdrelay.env'
	umask 022 && $(install_text) '$(install_source)/etc/systemd/upgrade-on-reload.conf' > \
	    '$(install_root)$(DOCDIR)/upgrade-on-reload.conf'
	umask 022 && $(install_text) '$(install_source)/etc/logrotate.d/fwdrelay' > '$(install_root)$(DOCDIR)/fwdrelay.logrotate'
	umask 022 && for example in $(install_examples); do \
	    $(install_text) "$(install_source)/etc/fwdrelay/examples/$$example" > \
	        "$(install_root)$(DOCDIR)/examples/$$example" || exit; done
	test -e '$(install_env)' || cp -p '$(install_root)$(DOCDIR)/fwdrelay.env' '$(install_env)'

# What an operator wrote stays: the files in SYSCONFDIR, drop-ins, the user, the logs.
uninstall: ## remove what install made; configuration stays
	rm -rf '$(install_root)$(install_venv)'
	rm -f $(foreach file,$(install_ctl) $(install_bash) $(install_zsh) $(install_fish),'$(install_root)$(file)')
	rm -f $(foreach unit,$(install_units),'$(install_root)$(UNITDIR)/$(unit)') '$(install_root)$(SYSUSERSDIR)/fwdrelay.conf'
	rm -f $(foreach example,$(install_examples),'$(install_root)$(DOCDIR)/examples/$(example)')
	-rmdir '$(install_root)$(DOCDIR)/examples'
	rm -f '$(install_root)$(DOCDIR)/systemd.md' '$(install_root)$(DOCDIR)/fwdrelay.env' \
	    '$(install_root)$(DOCDIR)/fwdrelay.logrotate' '$(install_root)$(DOCDIR)/upgrade-on-reload.conf'
	-rmdir '$(install_root)$(DOCDIR)'
