#include "mac.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>

struct tr_mac {
    EVP_MAC *algorithm;
    EVP_MAC_CTX *contexts[TR_ROLES];
};

enum { PERSON_SIZE = 8 };

static char persons[TR_ROLES][PERSON_SIZE + 1] = {"TRM1sack", "TRM1_ack", "TRM1resu", "TRM1conf"}; /* the library only reads them */

static EVP_MAC_CTX *new_context(EVP_MAC *algorithm, enum tr_role role)
{
    size_t size = TR_MAC_SIZE;
    const OSSL_PARAM params[] = {OSSL_PARAM_construct_size_t(OSSL_MAC_PARAM_SIZE, &size),
                                 OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_CUSTOM, persons[role], PERSON_SIZE),
                                 OSSL_PARAM_construct_end()};
    EVP_MAC_CTX *context = EVP_MAC_CTX_new(algorithm);

    if (context && EVP_MAC_CTX_set_params(context, params))
        return context;
    EVP_MAC_CTX_free(context);
    return NULL;
}

struct tr_mac *tr_mac_new(void)
{
    struct tr_mac *one = calloc(1, sizeof *one);

    if (!one)
        return NULL;
    one->algorithm = EVP_MAC_fetch(NULL, "BLAKE2SMAC", NULL);
    for (enum tr_role role = 0; one->algorithm && role < TR_ROLES; role++)
        one->contexts[role] = new_context(one->algorithm, role);
    for (enum tr_role role = 0; role < TR_ROLES; role++)
        if (!one->contexts[role]) {
            tr_mac_free(one);
            return NULL;
        }
    return one;
}

void tr_mac_free(struct tr_mac *one)
{
    if (!one)
        return;
    for (enum tr_role role = 0; role < TR_ROLES; role++)
        EVP_MAC_CTX_free(one->contexts[role]);
    EVP_MAC_free(one->algorithm);
    free(one);
}

bool tr_mac_write(struct tr_mac *one, uint8_t mac[TR_MAC_SIZE], const uint8_t key[TR_MAC_KEY_SIZE], enum tr_role role,
                  const struct tr_part *parts, size_t count)
{
    EVP_MAC_CTX *context = one->contexts[role];
    size_t size;

    if (!EVP_MAC_init(context, key, TR_MAC_KEY_SIZE, NULL))
        return false;
    for (size_t i = 0; i < count; i++)
        if (!EVP_MAC_update(context, parts[i].data, parts[i].size))
            return false;
    return EVP_MAC_final(context, mac, &size, TR_MAC_SIZE) && size == TR_MAC_SIZE;
}

bool tr_mac_is_right(struct tr_mac *one, const uint8_t mac[TR_MAC_SIZE], const uint8_t key[TR_MAC_KEY_SIZE],
                     enum tr_role role, const struct tr_part *parts, size_t count)
{
    uint8_t expected[TR_MAC_SIZE];

    return tr_mac_write(one, expected, key, role, parts, count) && CRYPTO_memcmp(expected, mac, TR_MAC_SIZE) == 0;
}
