//go:build !linux

package rpc

import (
	"net"
	"time"
)

// setUserTimeout does nothing where there is no TCP_USER_TIMEOUT.
func setUserTimeout(net.Conn, time.Duration) error { return nil }

func setCongestion(net.Conn) {}
