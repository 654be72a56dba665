-- Keeps a lock that is still its holder's. KEYS: lock. ARGV: holder, ms. Returns 1 where it was.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
