"""The gateway as a whole: a real Squid, real TLS origins and real clients, in a network
namespace of their own.
"""
